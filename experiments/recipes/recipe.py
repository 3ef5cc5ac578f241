"""One study as a frozen value: its question, its trials and its rule.

A recipe is what ``biaswise study run`` runs. To write one, give every arm a plan (``factorial.py``), state
the rule (``decision_rule.py``) and list the trials (``trials_of``); ``mini.py`` has short examples.

The recipe's digest covers every trial's settings, their data and the rule. It is fixed before the first
trial runs, and every row carries it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from experiments.recipes.decision_rule import AnalysisError, DecisionRule
from experiments.recipes.factorial import Arm, Design, level_of
from experiments.recipes.levels import complete, levels_by_site
from pipeline.config.plan import Choice, Plan
from pipeline.config.settings import TrialSettings

NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""What a study may be called: its name is that of a folder, and a word of commands."""


class RecipeError(ValueError):
    """An unknown recipe, or one that contradicts itself."""


@dataclass(frozen=True)
class SyntheticDataset:
    """A generated dataset that a recipe needs; it is made if it is absent.

    Attributes:
        root: dataset root, relative to the project root.
        seed: the random seed of everything in it.
        frames_per_scene: key frames per scene.
        scenes: number of scenes of each devkit split.
        rig: the sensors, ``mini`` or ``full`` (nuScenes' image size and sweeps).
    """

    root: str
    seed: int
    frames_per_scene: int = 20
    scenes: tuple[tuple[str, int], ...] = (("mini_train", 8), ("mini_val", 2))
    rig: str = "mini"


@dataclass(frozen=True)
class EarlyStoppingRule:
    """Which trials of a study are not trained to their end; fixed before the study starts.

    When a wave begins, this rule and the rows of earlier waves give each of its trials the thresholds below
    which it stops: a ``pipeline.config.early_stopping.EarlyStopping``. A trial knows its thresholds only,
    so two classes remain: this one for a study, the other for a trial.

    A trial of the second wave or a later one stops after a step at which the rule's metric lies below that
    of every trial of earlier waves by more than the margin. A stopped trial is censored, not dropped: its
    early value stays in the estimate. Trials of the first wave never stop, because no trial precedes them.

    Attributes:
        steps: training steps at which every trial is measured, increasing, before its last.
        margin: points.
    """

    steps: tuple[int, ...]
    margin: float = 5.0

    def __post_init__(self) -> None:
        """Refuse steps or a margin that make no sense."""
        if not self.steps or list(self.steps) != sorted(set(self.steps)) or self.steps[0] < 1:
            raise RecipeError(
                f"early stopping after the steps {self.steps}: expected increasing steps, from 1"
            )
        if not self.margin >= 0:
            raise RecipeError(f"early stopping with a margin of {self.margin} points: expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """One study.

    Attributes:
        name: name of the study, of its folder and of this recipe.
        question: the question that the study answers, one sentence.
        cost: what it needs, and what cannot be computed of its cost (``cost.py``), a phrase.
        trials: the trials, in the order in which they start. In a study with a design this is the largest
            set that may run.
        sites: sites whose bias the trials vary, the factors; empty if nothing is compared.
        rule: turns rows into verdicts; None if nothing is compared.
        datasets: generated datasets that the trials read.
        concurrent_trials: groups of workers at once on one machine, each with a trial or a cohort of them;
            None: as many as a probe finds best.
        arms_per_worker: most trials that a group of workers trains together, as a cohort; None: as many as
            keep all groups busy, or as a probe finds best. In no digest, as it changes no row but times.
        design: the arms that run with every seed, wave after wave until all verdicts are settled; None: all
            trials run in one wave.
        early_stopping: which trials of later waves are stopped; None: no trial is stopped.
        confirmation_seeds: seeds that no trial has. At the end three plans are trained with each: no bias,
            and the two best plans with a bias.
        underpowered: whether it runs although it can decide nothing at its margin, as a smoke test does.
        overridden: words with which the command line changed trials and rule.
        file: the study file that it comes from; empty if it ships with the project.
        begun_as: digest with which the study began, if its rule was corrected since; its rows carry it.
    """

    name: str
    question: str
    cost: str
    trials: tuple[TrialSettings, ...]
    sites: tuple[str, ...] = ()
    rule: DecisionRule | None = None
    datasets: tuple[SyntheticDataset, ...] = ()
    concurrent_trials: int | None = 1
    arms_per_worker: int | None = None
    design: Design | None = None
    early_stopping: EarlyStoppingRule | None = None
    confirmation_seeds: tuple[int, ...] = ()
    underpowered: bool = False
    overridden: tuple[str, ...] = ()
    file: str = ""
    begun_as: str = ""

    def __post_init__(self) -> None:
        """Refuse contradictions, among them two trials with the same settings: they would share a folder."""
        self._refuse_bad_names()
        if self.rule is not None:
            levels = levels_by_site(self.sites, [settings.plan for settings in self.trials], self.design)
            object.__setattr__(self, "rule", self._completed(self.rule, levels))
        if self.design is not None:
            self._refuse_bad_design(self.design)
        if self.early_stopping is not None:
            self._refuse_bad_early_stopping(self.early_stopping)
        self._refuse_bad_numbers()
        used = {settings.seed for settings in self.trials} & set(self.confirmation_seeds)
        if used:
            raise RecipeError(f"recipe {self.name}: confirmation needs fresh seeds, and {min(used)} is used")
        if self.confirmation_seeds and self.rule is None:
            raise RecipeError(f"recipe {self.name}: without a rule there is nothing to confirm")

    def _refuse_bad_numbers(self) -> None:
        for field in ("concurrent_trials", "arms_per_worker"):
            number = getattr(self, field)
            if number is not None and number < 1:
                raise RecipeError(f"recipe {self.name}: {field} is {number}; expected 1 or more, or None")
        if len(set(self.confirmation_seeds)) < len(self.confirmation_seeds):
            raise RecipeError(
                f"recipe {self.name}: confirmation_seeds names a seed twice: {list(self.confirmation_seeds)}"
            )

    def _refuse_bad_names(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise RecipeError(
                f"a recipe has the name {self.name!r}; expected letters, digits, '_', '-' and '.'"
            )
        if others := sorted({settings.study for settings in self.trials} - {self.name}):
            raise RecipeError(
                f"recipe {self.name}: its trials name the study {others[0]!r}; name both alike, or begin "
                f"with `.renamed({self.name!r})` of the recipe that you change"
            )
        names = [self.trial_name(settings) for settings in self.trials]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"recipe {self.name}: trial {twice[0]} is in it twice")

    def _completed(self, rule: DecisionRule, levels: Mapping[str, Sequence[str]]) -> DecisionRule:
        try:
            return complete(rule, levels)
        except AnalysisError as error:
            raise RecipeError(f"recipe {self.name}: {error}") from error

    def _refuse_bad_design(self, design: Design) -> None:
        rule = self.rule
        if rule is None or not rule.seeds or rule.sites != design.sites or self.sites != design.sites:
            raise RecipeError(
                f"recipe {self.name}: a design needs a rule that names its seeds, and sites that are those "
                f"of the design and the recipe ({', '.join(design.sites)})"
            )
        wanted = {(arm, seed) for arm in design.arms for seed in rule.seeds}
        if set(self.by_arm()) != wanted:
            raise RecipeError(
                f"recipe {self.name}: its trials are not every arm of its design with every seed"
            )
        if rule.arms and set(rule.arms) != set(design.arms):
            raise RecipeError(f"recipe {self.name}: rule and design name different arms")

    def _refuse_bad_early_stopping(self, early: EarlyStoppingRule) -> None:
        if self.design is None:
            raise RecipeError(f"recipe {self.name}: early stopping needs waves, hence a design")
        steps = [settings.train.steps for settings in self.trials]
        if None in steps:
            raise RecipeError(
                f"recipe {self.name}: early stopping needs a number in train.steps, and it is None"
            )
        shortest = min(filter(None, steps), default=0)
        if early.steps[-1] >= shortest:
            raise RecipeError(
                f"recipe {self.name}: early stopping after step {early.steps[-1]} is too late "
                f"for trials of {shortest}; name earlier steps with --set early_stopping.steps=N, "
                f"or stop no trial with --set early_stopping=none"
            )

    @property
    def word(self) -> str:
        """What commands call the study: its file, or its name."""
        return self.file or self.name

    @property
    def digest(self) -> str:
        """Twelve hex digits that name all trials, their data and the rule with which the study began."""
        return self.begun_as or self.digest_under(self.rule)

    def digest_under(self, rule: DecisionRule | None) -> str:
        """Return the digest that the recipe has with another rule."""
        plain = {
            "trials": [settings.digest for settings in self.trials],
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "rule": rule.to_dict() if rule else None,
        }
        if self.early_stopping is not None:
            plain["early_stopping"] = asdict(self.early_stopping)
        if self.confirmation_seeds:
            plain["confirmation_seeds"] = list(self.confirmation_seeds)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    def trial_name(self, settings: TrialSettings) -> str:
        """Return a readable name: biases of the factors (``window15``), seed, digest of the settings."""
        choices = [settings.plan[site] for site in self.sites]
        biases = [f"{choice.bias}{choice.window or ''}" for choice in choices] or ["trial"]
        return f"{'-'.join(biases)}_s{settings.seed}_{settings.digest}"

    def named_trials(self) -> dict[str, TrialSettings]:
        """Return trial name -> settings, in order."""
        return {self.trial_name(settings): settings for settings in self.trials}

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """What trials start from, each once, in the order of seeds; empty text: the weights of the config."""
        return tuple(dict.fromkeys(settings.init_checkpoint for settings in self.trials))

    def by_arm(self) -> dict[tuple[Arm, int], str]:
        """Return (levels of the factors, seed) -> trial name."""
        return {
            (tuple(level_of(s.plan[site]) for site in self.sites), s.seed): self.trial_name(s)
            for s in self.trials
        }

    def choice(self, site: str, level: str) -> Choice:
        """Return the choice of a site that has the level in some trial.

        Raises:
            RecipeError: no trial has it.
        """
        choices = [s.plan[site] for s in self.trials if level_of(s.plan[site]) == level]
        if not choices:
            raise RecipeError(
                f"recipe {self.name}: no trial has {level} at {site}, so it cannot be put there"
            )
        return choices[0]

    def plan(self, levels: Sequence[str]) -> Plan:
        """Return the plan with these levels of the factors, all else as in the first trial."""
        choices = {site: self.choice(site, level) for site, level in zip(self.sites, levels, strict=True)}
        return with_choices(self.trials[0].plan, choices)

    def renamed(self, name: str) -> "Recipe":
        """Return the recipe under another name, as the first step of a study that derives from it."""
        return replace(self, name=name, trials=tuple(replace(s, study=name) for s in self.trials))

    def with_threads(self, threads: int) -> "Recipe":
        """Return the recipe with another number of torch threads.

        On a CPU the number changes the bits of a result, so the digest changes too.
        """
        trials = tuple(replace(s, torch_threads=threads) for s in self.trials)
        return replace(self, trials=trials, begun_as="")

    def with_workers(self, workers: int) -> "Recipe":
        """Return the recipe with this many workers per trial, and the same number of frames per step.

        On GPUs each worker has a GPU of its own.

        Raises:
            RecipeError: a batch cannot be shared equally.
        """
        if workers < 1:
            raise RecipeError(f"{workers} workers a trial: expected 1 or more")
        return replace(self, trials=tuple(self._spread(settings, workers) for settings in self.trials))

    def _spread(self, settings: TrialSettings, workers: int) -> TrialSettings:
        together = settings.train.batch_size * settings.num_workers
        if together % workers:
            fitting = ", ".join(str(n) for n in range(1, together + 1) if together % n == 0)
            raise RecipeError(
                f"recipe {self.name}: a batch of {together} cannot be shared equally by {workers} workers; "
                f"expected one of {fitting} (--gpus-per-trial N), or another batch (--set train.batch_size=N)"
            )
        train = replace(settings.train, batch_size=together // workers)
        return replace(settings, num_workers=workers, train=train)


def with_choices(plan: Plan, choices: Mapping[str, Choice]) -> Plan:
    """Return a plan with other choices at some of the patterns it names."""
    return Plan(tuple((site, choices.get(site, choice)) for site, choice in plan.choices))


def trials_of(
    design: Design, base: TrialSettings, seeds: Sequence[int], plans: Mapping[Arm, Plan]
) -> tuple[TrialSettings, ...]:
    """Return every arm of a design with every seed: settings that differ only in plan and seed.

    Args:
        design: the arms.
        base: all other settings.
        seeds: the blocks.
        plans: arm -> its plan.
    """
    return tuple(replace(base, plan=plans[arm], seed=seed) for seed in seeds for arm in design.arms)
