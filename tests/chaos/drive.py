"""The command line with the chaos recipe among its recipes: what the study driver runs.

CHAOS_WORLD=/data CHAOS_MAD= python -m tests.chaos.drive study run chaos --runs-dir FOLDER
"""

import os
import sys
from pathlib import Path

from experiments.cli import main
from experiments.recipes.registry import RECIPES
from tests.chaos.study import NAME, chaos_recipe


def _recipe():
    mad = os.environ.get("CHAOS_MAD", "")
    return chaos_recipe(Path(os.environ["CHAOS_WORLD"]), int(mad) if mad else None)


if __name__ == "__main__":
    RECIPES[NAME] = _recipe
    sys.exit(main())
