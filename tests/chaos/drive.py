"""The command line with the chaos recipe among its recipes: what the study driver runs.

CHAOS_WORLD=/data python -m tests.chaos.drive study run chaos --runs-dir FOLDER
"""

import os
import sys
from pathlib import Path

from experiments.cli import main
from experiments.recipes.registry import RECIPES
from tests.chaos.study import NAME, chaos_recipe

if __name__ == "__main__":
    RECIPES[NAME] = lambda: chaos_recipe(Path(os.environ["CHAOS_WORLD"]))
    sys.exit(main())
