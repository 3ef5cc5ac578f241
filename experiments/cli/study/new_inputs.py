"""What ``biaswise study new`` refuses: words, windows and weights with which its study could not run."""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.cli.options import OptionError
from experiments.cli.study.power import refuse_noise


def refuse_words(arguments: Namespace, file: Path) -> None:
    """Refuse what is wrong before the config is read."""
    from experiments.recipes.recipe import NAME
    from experiments.recipes.registry import RECIPES
    from experiments.recipes.study_file import SUFFIX

    if file.suffix != SUFFIX:
        raise OptionError(f"{file}: a study file is a Python file; give it a name that ends in {SUFFIX}")
    if file.exists():
        raise OptionError(f"{file}: exists already; choose another name, or remove it")
    if file.stem in RECIPES or not NAME.fullmatch(file.stem):
        why = "is the name of a recipe that ships" if file.stem in RECIPES else "cannot name a study"
        raise OptionError(f"{file}: {file.stem!r} {why}; choose another name")
    if arguments.gpus < 0:
        raise OptionError(f"--gpus {arguments.gpus}: expected the number of GPUs, or 0 for the CPU")
    if arguments.hours is not None and not 0 < arguments.hours < math.inf:
        raise OptionError(f"--hours {arguments.hours:g}: expected a number above 0")
    refuse_noise(arguments)
    _refuse_treatments(treatments_of(arguments))


def treatments_of(arguments: Namespace) -> tuple[str, ...]:
    """Return the levels that are compared with no bias."""
    return tuple(arguments.treatment or ("window",))


def _refuse_treatments(levels: Sequence[str]) -> None:
    """Refuse a level that is no bias kind of the decoder, or a window that is no number of cells."""
    from operators.spec import WEIGHTED_KINDS, WINDOWED_KINDS

    for place, level in enumerate(levels):
        kind, colon, cells = level.partition(":")
        sized = not colon or (kind in WINDOWED_KINDS and cells.isdecimal() and int(cells) > 0)
        if kind not in WEIGHTED_KINDS or not sized:
            windows = " or ".join(f"{windowed}:N" for windowed in WINDOWED_KINDS)
            raise OptionError(
                f"--treatment {level}: expected one of {', '.join(WEIGHTED_KINDS)}, or {windows} for a "
                f"window of N cells, 1 or more"
            )
        if level in levels[:place]:
            raise OptionError(f"--treatment {level}: is given twice; leave one out")


def refuse_windows(levels: Sequence[str], maps: Mapping[str, tuple[int, int] | None]) -> None:
    """Refuse a window that is larger than a map of the config.

    Args:
        levels: that are compared with no bias.
        maps: as ``LintReport`` has them.
    """
    from experiments.lint.model_rules import too_large

    for level in levels:
        cells = level.partition(":")[2]
        for which, size in maps.items() if cells else ():
            if told := too_large(int(cells), which, size):
                raise OptionError(f"--treatment {level}: {told[0]}; take at most {min(size or ())}")


def refuse_weights(typed: str, config: Path, builds: bool) -> None:
    """Refuse weights that cannot be read, or that do not fit the model.

    Args:
        typed: the checkpoint.
        config: the model's.
        builds: whether the model can be built here; else the weights are only read.
    """
    from pipeline.detector.build import build_model
    from pipeline.detector.checkpoints import WeightsError, read_tensors
    from pipeline.detector.weights import load_weights
    from pipeline.storage.paths import not_a_file, resolve_path, split_name
    from pipeline.training.initial_weights import OF_SETTINGS

    path = resolve_path(typed)
    if problem := not_a_file(split_name(path)[0]):
        raise OptionError(f"--init {typed}: {problem}")
    try:
        if builds:
            load_weights(build_model(config), path, OF_SETTINGS)
        else:
            read_tensors(path)
    except WeightsError as error:
        raise OptionError(f"--init {typed}: {error}") from error
