"""Find the file and line where a config's key was written, through variables, spreads and ``_base_`` files.

mmengine runs a config and keeps the values. This module parses the same files and keeps the places. A value
that it cannot follow, such as one that a function makes, has the place of the nearest key above it.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Key: TypeAlias = tuple[str | int, ...]
"""Path to a key from the top of a config, such as ``("model", "pts_bbox_head", "tasks", 0)``."""


@dataclass(frozen=True)
class SourcePlace:
    """A range of text in a file.

    Attributes:
        file: the file.
        line: line of the start, counted from 1.
        column: column of the start, counted from 1 in UTF-8 bytes, as ``ast`` counts them.
        end: (line, column) just after the range. ``None`` if the text is not an item that can be removed,
            such as ``key=value``.
    """

    file: Path
    line: int
    column: int
    end: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Return ``file:line``, which editors and terminals turn into a link."""
        return f"{self.file}:{self.line}"


@dataclass
class ConfigEntry:
    """A key of a dict or an item of a list: where it was written, and its value."""

    place: SourcePlace
    value: "ConfigNode"


@dataclass
class ConfigNode:
    """A value of a config.

    A dict has children by key, and a list has them by number. Any other value has none. ``every`` stands for
    the items of a list that are not written one by one, such as those of a comprehension.
    """

    place: SourcePlace
    children: dict[str | int, ConfigEntry] = field(default_factory=dict)
    is_dict: bool = False
    every: ConfigEntry | None = None


@dataclass(frozen=True)
class ConfigSource:
    """The parsed text of a config and its bases.

    Attributes:
        file: the config file.
        top: the config's variables, including those of its bases.
        used: names that code in these files reads. They are variables, not keys for a program.
    """

    file: Path
    top: ConfigNode
    used: frozenset[str]

    def find(self, key: Key) -> tuple[SourcePlace, bool]:
        """Find where a key was written.

        Returns:
            The key's place and True, or the place of the nearest key above it and False.
        """
        node, place = self.top, SourcePlace(self.file, 1, 1)
        for part in key:
            entry = node.children.get(part, node.every if isinstance(part, int) else None)
            if entry is None:
                return place, False
            node, place = entry.value, entry.place
        return place, True


def read_source(file: Path) -> ConfigSource:
    """Parse a config and its bases.

    Args:
        file: an mmengine config. A file whose name does not end in ``.py`` is read as empty.

    Raises:
        SyntaxError: a file is not valid Python.
        OSError: a file does not exist or cannot be read.
    """
    if file.suffix != ".py":
        return ConfigSource(file, ConfigNode(SourcePlace(file, 1, 1), is_dict=True), frozenset())
    tree = ast.parse(file.read_bytes(), filename=str(file))
    reader = _Reader(file)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not _is_stored(node)}
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "_base_"
    }
    bases = [read_source((file.parent / name).resolve()) for name in _base_names(tree)]
    for base in bases:
        reader.base.children.update(base.top.children)
        names |= base.used
    for statement in tree.body:
        reader.run(statement)
    return ConfigSource(file, _merged(reader.top, reader.base), frozenset(names))


def files_of(file: Path) -> set[Path]:
    """Return a config in Python and its bases; read as text, nothing is run.

    Raises:
        SyntaxError, OSError: see ``read_source``.
    """
    if file.suffix != ".py":
        return {file}
    bases = _base_names(ast.parse(file.read_bytes(), filename=str(file)))
    return {file}.union(*(files_of((file.parent / name).resolve()) for name in bases))


def _is_stored(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _base_names(tree: ast.Module) -> list[str]:
    """Return the names that ``_base_`` lists, without those in an installed package (``mmdet::...``)."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _target(statement) == "_base_":
            try:
                bases = ast.literal_eval(statement.value)
            except ValueError:  # a computed ``_base_``, which mmengine refuses itself
                return []
            return [name for name in ([bases] if isinstance(bases, str) else bases) if "::" not in name]
    return []


def _target(statement: ast.Assign) -> str:
    return statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else ""


def _merged(child: ConfigNode, base: ConfigNode) -> ConfigNode:
    """Merge as mmengine does: a dict into a dict, key by key.

    Any other value, and a dict with ``_delete_``, replaces the base's value.
    """
    merged = ConfigNode(child.place, dict(base.children), is_dict=True)
    for key, entry in child.children.items():
        inherited = merged.children.get(key)
        both = inherited is not None and inherited.value.is_dict and entry.value.is_dict
        if both and inherited is not None and "_delete_" not in entry.value.children:
            entry = ConfigEntry(entry.place, _merged(entry.value, inherited.value))
        merged.children[key] = entry
    return merged


def _constant(node: ast.expr) -> str | int:
    """Return a literal key or number. For a computed one, return ``""``, a key that no config has."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str | int) else ""


class _Reader:
    """Reads the statements of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.top = ConfigNode(SourcePlace(file, 1, 1), is_dict=True)
        self.base = ConfigNode(SourcePlace(file, 1, 1), is_dict=True)

    def run(self, statement: ast.stmt) -> None:
        """Record the place and value of an assignment. Other statements are ignored."""
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            return
        for target in targets:
            holder, key = self._holder(target)
            if holder is not None and key != "_base_":
                holder.children[key] = ConfigEntry(self._place(statement), self.read(value))

    def _holder(self, target: ast.expr) -> tuple[ConfigNode | None, str | int]:
        """Return the dict or list that an assignment changes, and the key that it sets there."""
        if isinstance(target, ast.Name):
            return self.top, target.id
        if isinstance(target, ast.Attribute):
            return self.read(target.value), target.attr
        if isinstance(target, ast.Subscript):
            return self.read(target.value), _constant(target.slice)
        return None, ""

    def read(self, node: ast.expr) -> ConfigNode:
        """Return the value of an expression, with the places of its keys and items."""
        config_node = ConfigNode(self._place(node))
        if isinstance(node, ast.Dict):
            config_node.is_dict = True
            for key, value in zip(node.keys, node.values, strict=True):
                self._add(config_node, key, value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, config_node)
        elif isinstance(node, ast.List | ast.Tuple):
            self._items(config_node, node.elts)
        elif isinstance(node, ast.ListComp):
            config_node.every = ConfigEntry(self._place(node.elt), self.read(node.elt))
        elif isinstance(node, ast.BinOp):
            self._joined(config_node, node)
        else:
            return self._named(node, config_node)
        return config_node

    def _named(self, node: ast.expr, otherwise: ConfigNode) -> ConfigNode:
        """Return the value of a variable or of a part of one, or ``otherwise`` if it is unknown."""
        if isinstance(node, ast.Name):
            return self.base if node.id == "_base_" else self._child(self.top, node.id, otherwise)
        if isinstance(node, ast.Attribute):
            return self._child(self.read(node.value), node.attr, otherwise)
        if isinstance(node, ast.Subscript):
            return self._child(self.read(node.value), _constant(node.slice), otherwise)
        if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # {{_base_.name}}
            return self.read(node.elts[0].elts[0])
        return otherwise

    def _call(self, node: ast.Call, config_node: ConfigNode) -> ConfigNode:
        """Read ``dict(...)``, and read a copy (``deepcopy(x)``, ``list(x)``) as what it copies."""
        assert isinstance(node.func, ast.Name)
        if node.func.id in ("deepcopy", "copy", "list", "tuple") and len(node.args) == 1:
            return self.read(node.args[0])
        if node.func.id == "dict":
            config_node.is_dict = True
            for argument in node.args:
                config_node.children.update(self.read(argument).children)
            for keyword in node.keywords:
                if keyword.arg is None:
                    config_node.children.update(self.read(keyword.value).children)
                else:
                    place = self._place(keyword, keyword)
                    config_node.children[keyword.arg] = ConfigEntry(place, self.read(keyword.value))
        return config_node

    def _add(self, config_node: ConfigNode, key: ast.expr | None, value: ast.expr) -> None:
        if key is None:
            config_node.children.update(self.read(value).children)
        elif isinstance(key, ast.Constant) and isinstance(key.value, str | int):
            config_node.children[key.value] = ConfigEntry(self._place(key, value), self.read(value))

    def _items(self, config_node: ConfigNode, items: list[ast.expr]) -> None:
        for item in items:
            if isinstance(item, ast.Starred):
                self._extend(config_node, self.read(item.value))
            else:
                entry = ConfigEntry(self._place(item), self.read(item))
                self._extend(config_node, ConfigNode(config_node.place, {0: entry}))

    def _joined(self, config_node: ConfigNode, node: ast.BinOp) -> None:
        """Follow ``[...] + [...]`` and ``[...] * n``."""
        left, right = self.read(node.left), self.read(node.right)
        self._extend(config_node, left)
        if isinstance(node.op, ast.Add):
            self._extend(config_node, right)
        elif isinstance(node.op, ast.Mult) and len(left.children) == 1:
            config_node.every = left.children.get(0)

    def _extend(self, config_node: ConfigNode, more: ConfigNode) -> None:
        start = len(config_node.children)
        for number, entry in enumerate(more.children.values()):
            config_node.children[start + number] = entry
        config_node.every = config_node.every or more.every

    def _child(self, holder: ConfigNode, key: str | int, otherwise: ConfigNode) -> ConfigNode:
        entry = holder.children.get(key, holder.every if isinstance(key, int) else None)
        return otherwise if entry is None else entry.value

    def _place(self, node: ast.AST, last: ast.AST | None = None) -> SourcePlace:
        """Return the place of a node. For an item that can be removed, the place ends behind ``last``."""
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        end = None if last is None else (last.end_lineno, last.end_col_offset + 1)  # type: ignore[attr-defined]
        return SourcePlace(self.file, line, column, end)
