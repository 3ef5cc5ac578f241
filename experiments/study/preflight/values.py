"""Settings and a rule that make no sense on any machine, refused by every command that takes ``--set``.

It imports no torch: ``biaswise study power`` asks, too.
"""

from experiments.recipes.recipe import Recipe
from experiments.storage.study_folder import StudyError
from pipeline.errors import TrialError


def check_values(recipe: Recipe) -> None:
    """Refuse settings that no trial can have, and a rule about what the trials do not measure.

    Raises:
        StudyError: the first thing that is wrong, in one sentence.
    """
    from pipeline.training import preflight  # imports numpy

    for settings in recipe.trials:
        try:
            preflight.check_values(settings)
        except TrialError as error:
            raise StudyError(f"recipe {recipe.name}: {error}") from error
    check_rule(recipe)


def check_rule(recipe: Recipe) -> None:
    """Refuse a rule about what the trials do not measure: else it would show after the last trial.

    Raises:
        StudyError: its metric or its sensor condition is none that every trial measures.
    """
    from pipeline.evaluation.nuscenes_metric import HIGHER_IS_BETTER, QUICK_METRICS

    rule = recipe.rule
    if rule is None:
        return
    known = HIGHER_IS_BETTER if recipe.early_stopping is None else QUICK_METRICS
    if rule.metric not in known:
        why = (
            "more of it is better"
            if recipe.early_stopping is None
            else "it is measured where trials may stop"
        )
        raise StudyError(
            f"recipe {recipe.name}: its rule asks for {rule.metric!r}; expected a metric of which {why}: "
            f"{', '.join(known)}"
        )
    for name, settings in recipe.named_trials().items():
        if rule.condition not in settings.conditions:
            raise StudyError(
                f"recipe {recipe.name}: its rule asks for the condition {rule.condition!r}, and trial {name} "
                f"measures {', '.join(settings.conditions) or 'none'}"
            )
