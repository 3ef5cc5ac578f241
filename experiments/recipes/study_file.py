"""Loads a study file: a Python file of the user's that ends in a ``recipe``.

A study file is code. It is run as such, and only because the user names it (docs/security.md). Whatever goes
wrong in it is told in one sentence with its place.
"""

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.recipes.recipe import Recipe, RecipeError
from pipeline.errors import is_user_error

SUFFIX = ".py"
RECIPE = "recipe"
"""The variable that a study file ends in."""
UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
"""What Python says of a keyword that a class or a function does not have."""
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_study_file(path: Path, taken: Collection[str]) -> Recipe:
    """Run a study file; return its recipe.

    Args:
        path: the file.
        taken: names of the recipes that ship with the project, which no study file may have.

    Raises:
        RecipeError: there is no such file, it cannot be run, or it does not end in a recipe; says where.
    """
    variables = _run(path, _compiled(path))
    if RECIPE not in variables:
        raise RecipeError(
            f"{path}: it has no variable `{RECIPE}`; end it in `{RECIPE} = layer_study(...)`, as "
            f"`biaswise study new` writes it, or in `{RECIPE} = Recipe(...)`"
        )
    made = variables[RECIPE]
    if not isinstance(made, Recipe):
        hint = "; call it, and give the recipe that it returns" if callable(made) else ""
        raise RecipeError(
            f"{path}: `{RECIPE}` is of the type {type(made).__name__}; expected a Recipe "
            f"(experiments.recipes.recipe){hint}"
        )
    if made.name in taken:
        raise RecipeError(
            f"{path}: its recipe has the name {made.name!r}, which is that of a shipped recipe; choose "
            f"another, such as `{RECIPE} = {RECIPE}.renamed({path.stem!r})`"
        )
    return replace(made, file=str(path))


def _compiled(path: Path) -> Any:
    if path.suffix != SUFFIX:
        raise RecipeError(f"{path}: a study file is a Python file, and its name ends in {SUFFIX}")
    if not path.is_file():
        what = "is a folder, expected a file" if path.is_dir() else "no such study file"
        raise RecipeError(f"{path}: {what}; `biaswise study new {path.name}` writes one")
    try:
        return compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise RecipeError(f"{path}:{error.lineno or 1}: this is not Python ({error.msg})") from error
    except ValueError as error:  # null bytes
        raise RecipeError(f"{path}: this is not Python ({error})") from error


def _run(path: Path, code: Any) -> dict[str, Any]:
    """Run compiled code as a module of the file's name; return its variables."""
    variables: dict[str, Any] = {"__name__": path.stem, "__file__": str(path.resolve())}
    try:
        with _importable(path.resolve().parent):
            exec(code, variables)
    except SystemExit as left:
        raise RecipeError(
            f"{path}:{_line(left, path)}: it ends the program (exit {left.code!r}) instead of ending in a "
            f"`{RECIPE}`"
        ) from left
    except Exception as error:
        what = str(error) if is_user_error(error) else _unknown_name(error) or _python(error)
        raise RecipeError(f"{path}:{_line(error, path)}: {what}") from error
    return variables


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a study file import its neighbours, as Python lets a script; leave no compiled file there."""
    path, quiet = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, quiet


def _python(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _unknown_name(error: Exception) -> str:
    """Return which names a class or a function has, if the error is that it lacks one; else nothing."""
    found = UNEXPECTED.match(str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return ""
    called, name = found.groups()
    frames = [frame.f_globals for frame, _ in traceback.walk_tb(error.__traceback__)]
    made = next((scope[called] for scope in reversed(frames) if callable(scope.get(called))), None)
    if made is None:
        return ""
    names = [p.name for p in inspect.signature(made).parameters.values() if p.kind in NAMED]
    near = difflib.get_close_matches(name, names, 3)
    advice = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names)}"
    return f"{called} has no {name!r}; {advice}"


def _line(error: BaseException, path: Path) -> int:
    """Return the last line of the file that was under way when the error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 1 for frame in reversed(frames) if frame.filename == str(path)), 1)
