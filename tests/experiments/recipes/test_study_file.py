"""A study file ends in a recipe; every way in which it does not is told in one sentence with its place."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.recipes import registry
from experiments.recipes.mini import demo, smoke
from experiments.recipes.recipe import RecipeError
from experiments.recipes.study_file import load_study_file

GOOD = """\
from experiments.recipes.registry import recipe as shipped

recipe = shipped("smoke").renamed("mine")
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="my_study.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def test_a_study_file_ends_in_a_recipe(write):
    made = registry.recipe(str(write(GOOD)))
    assert replace(made, file="") == smoke().renamed("mine")
    assert made.word == made.file
    assert {settings.study for settings in made.trials} == {"mine"}


def test_a_study_file_imports_its_neighbours_and_leaves_nothing_behind(write, tmp_path):
    write("NAME = 'from_beside'\n", "beside_me.py")
    path, before = write(GOOD.replace('"mine"', "beside_me.NAME") + "", "s.py"), list(sys.path)
    path.write_text("import beside_me\n" + path.read_text())
    assert registry.recipe(str(path)).name == "from_beside"
    assert sys.path == before
    assert {file.name for file in tmp_path.iterdir()} == {"beside_me.py", "s.py"}


WRONG = {
    "no recipe": (
        "x = 1\n",
        r"it has no variable `recipe`; end it in `recipe = layer_study\(\.\.\.\)`, as `biaswise study new` "
        r"writes it, or in `recipe = Recipe",
    ),
    "a function": (
        "from experiments.recipes.registry import recipe\n",
        r"`recipe` is of the type function; expected a Recipe \(.*\); call it, and give",
    ),
    "another type": ("recipe = 3\n", r"`recipe` is of the type int; expected a Recipe"),
    "syntax": ("a = 1\nrecipe = = 2\n", r"my_study\.py:2: this is not Python \(invalid syntax\)"),
    "null bytes": (b"a = 1\x00", r"my_study\.py.*: this is not Python \(.*null byte"),
    "no UTF-8": (b"a = '\xff'", r"my_study\.py.*: this is not Python \(.*"),
    "exit": ("import sys\nsys.exit(3)\n", r"my_study\.py:2: it ends the program \(exit 3\) instead of"),
    "exception": ("def f():\n    return 1 / 0\n\nf()\n", r"my_study\.py:2: ZeroDivisionError: division by"),
    "a field with a typing error": (
        "from experiments.recipes.decision_rule import DecisionRule\n\nDecisionRule(equivalence_margn=1)\n",
        r"my_study\.py:3: DecisionRule has no 'equivalence_margn'; did you mean equivalence_margin\?",
    ),
    "a field of nothing": (
        "from experiments.recipes.factorial import Factor\nFactor(qqq=1)\n",
        r"my_study\.py:2: Factor has no 'qqq'; it has site, levels",
    ),
    "a field that a call inside lacks": (
        GOOD + "from dataclasses import replace\nreplace(recipe, questoin='?')\n",
        r"my_study\.py:5: Recipe has no 'questoin'; did you mean question\?",
    ),
    "a keyword of Python's own": ("int(bse=2)\n", r"my_study\.py:1: TypeError: .*bse"),
    "import": ("import no_such_thing\n", r"my_study\.py:1: ModuleNotFoundError: No module named 'no_such"),
    "our refusal": (
        GOOD + "recipe = recipe.with_workers(0)\n",
        r"my_study\.py:4: 0 workers a trial: expected 1 or more",
    ),
    "a taken name": (
        'from experiments.recipes.registry import recipe as s\nrecipe = s("demo")\n',
        r"has the name 'demo', which is that of a shipped recipe; .*`recipe = recipe\.renamed\('my_study'\)`",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_with_its_place(write, text, sentence):
    with pytest.raises(RecipeError, match=sentence) as refusal:
        registry.recipe(str(write(text)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.py", r"none\.py: no such study file; `biaswise study new none\.py` writes one"),
        ("folder.py", r"folder\.py: is a folder, expected a file"),
        ("./study.txt", r"study\.txt: a study file is a Python file, and its name ends in \.py"),
        ("mine", r"no recipe 'mine'; there are demo, .*; did you mean mine\.py\?"),
        ("other", r"no recipe 'other'; there are demo, .*; a study file ends in \.py"),
    ],
)
def test_a_name_that_leads_nowhere(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "study.txt").write_text(GOOD)
    (tmp_path / "mine.py").write_text(GOOD)
    with pytest.raises(RecipeError, match=sentence):
        registry.recipe(name)


def test_an_interrupt_is_no_fault_of_the_file(write):
    with pytest.raises(KeyboardInterrupt):
        load_study_file(write("raise KeyboardInterrupt\n"), ())


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_name_that_is_no_folder(name):
    with pytest.raises(RecipeError, match="expected letters, digits"):
        demo().renamed(name)


def test_trials_of_another_study_are_refused():
    with pytest.raises(
        RecipeError, match=r"recipe mine: its trials name the study 'demo'; .*renamed\('mine'"
    ):
        replace(demo(), name="mine")


def test_only_a_file_that_is_named_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo.py").write_text("raise SystemExit('run')\n")
    assert registry.recipe("demo") == demo()
