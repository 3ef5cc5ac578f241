"""Where in which file a config's key was written, through variables, spreads and ``_base_`` files.

mmengine runs a config and keeps the values; this reads the same files as syntax and keeps the places. What
it cannot follow (a value made by a function, say) has the place of the nearest key above it.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Key: TypeAlias = tuple[str | int, ...]
"""Path to a key from the top of a config, such as ``("model", "pts_bbox_head", "tasks", 0)``."""


@dataclass(frozen=True)
class SourcePlace:
    """A stretch of a file.

    Attributes:
        file: where.
        line: of its start, from 1.
        column: of its start, from 1, in characters of UTF-8 (bytes, as ``ast`` counts them).
        end: (line, column) behind it; ``None`` if it is no removable item such as ``key=value``.
    """

    file: Path
    line: int
    column: int
    end: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Spell as editors and terminals link it."""
        return f"{self.file}:{self.line}"


@dataclass
class ConfigEntry:
    """A key or an item, where it was written, and what it holds."""

    place: SourcePlace
    value: "ConfigNode"


@dataclass
class ConfigNode:
    """A value: a dict or a list has children by key or number, any other value none.

    ``every`` stands for all items of a list whose number is not written, such as a comprehension.
    """

    place: SourcePlace
    children: dict[str | int, ConfigEntry] = field(default_factory=dict)
    is_dict: bool = False
    every: ConfigEntry | None = None


@dataclass(frozen=True)
class ConfigSource:
    """A config as it is written.

    Attributes:
        file: the config.
        top: its variables, those of its bases included.
        used: names that are read somewhere in these files: they are variables, not keys for a program.
    """

    file: Path
    top: ConfigNode
    used: frozenset[str]

    def find(self, key: Key) -> tuple[SourcePlace, bool]:
        """Find where a key was written.

        Returns:
            Its place, or that of the nearest key above it; and whether it is the key's own.
        """
        node, place = self.top, SourcePlace(self.file, 1, 1)
        for part in key:
            entry = node.children.get(part, node.every if isinstance(part, int) else None)
            if entry is None:
                return place, False
            node, place = entry.value, entry.place
        return place, True


def read_source(file: Path) -> ConfigSource:
    """Read a config and its bases as syntax.

    Args:
        file: of mmengine; one that is not Python is read as empty.

    Raises:
        SyntaxError, OSError: a file is no Python, or not there.
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


def _is_stored(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _base_names(tree: ast.Module) -> list[str]:
    """Return what ``_base_`` lists, less what lies in an installed package (``mmdet::...``)."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _target(statement) == "_base_":
            try:
                found = ast.literal_eval(statement.value)
            except ValueError:  # computed: mmengine refuses that itself
                return []
            return [name for name in ([found] if isinstance(found, str) else found) if "::" not in name]
    return []


def _target(statement: ast.Assign) -> str:
    return statement.targets[0].id if isinstance(statement.targets[0], ast.Name) else ""


def _merged(child: ConfigNode, base: ConfigNode) -> ConfigNode:
    """Merge as mmengine does: dict into dict, key by key; anything else, and ``_delete_``, replaces."""
    merged = ConfigNode(child.place, dict(base.children), is_dict=True)
    for key, entry in child.children.items():
        below = merged.children.get(key)
        both = below is not None and below.value.is_dict and entry.value.is_dict
        if both and below is not None and "_delete_" not in entry.value.children:
            entry = ConfigEntry(entry.place, _merged(entry.value, below.value))
        merged.children[key] = entry
    return merged


def _constant(node: ast.expr) -> str | int:
    """Return a key or number that is written out; one that is computed gives the key that nothing has."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str | int) else ""


class _Reader:
    """Reads the statements of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.top = ConfigNode(SourcePlace(file, 1, 1), is_dict=True)
        self.base = ConfigNode(SourcePlace(file, 1, 1), is_dict=True)

    def run(self, statement: ast.stmt) -> None:
        """Follow an assignment; other statements leave values where they were."""
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
        """Find the dict or list that an assignment changes, and the key there."""
        if isinstance(target, ast.Name):
            return self.top, target.id
        if isinstance(target, ast.Attribute):
            return self.read(target.value), target.attr
        if isinstance(target, ast.Subscript):
            return self.read(target.value), _constant(target.slice)
        return None, ""

    def read(self, node: ast.expr) -> ConfigNode:
        """Read a value."""
        found = ConfigNode(self._place(node))
        if isinstance(node, ast.Dict):
            found.is_dict = True
            for key, value in zip(node.keys, node.values, strict=True):
                self._add(found, key, value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, found)
        elif isinstance(node, ast.List | ast.Tuple):
            self._items(found, node.elts)
        elif isinstance(node, ast.ListComp):
            found.every = ConfigEntry(self._place(node.elt), self.read(node.elt))
        elif isinstance(node, ast.BinOp):
            self._joined(found, node)
        else:
            return self._named(node, found)
        return found

    def _named(self, node: ast.expr, otherwise: ConfigNode) -> ConfigNode:
        """Read a variable, or a part of one."""
        if isinstance(node, ast.Name):
            return self.base if node.id == "_base_" else self._child(self.top, node.id, otherwise)
        if isinstance(node, ast.Attribute):
            return self._child(self.read(node.value), node.attr, otherwise)
        if isinstance(node, ast.Subscript):
            return self._child(self.read(node.value), _constant(node.slice), otherwise)
        if isinstance(node, ast.Set) and isinstance(node.elts[0], ast.Set):  # {{_base_.name}}
            return self.read(node.elts[0].elts[0])
        return otherwise

    def _call(self, node: ast.Call, found: ConfigNode) -> ConfigNode:
        """Read ``dict(...)``, and see through a copy."""
        assert isinstance(node.func, ast.Name)
        if node.func.id in ("deepcopy", "copy", "list", "tuple") and len(node.args) == 1:
            return self.read(node.args[0])
        if node.func.id == "dict":
            found.is_dict = True
            for argument in node.args:
                found.children.update(self.read(argument).children)
            for keyword in node.keywords:
                if keyword.arg is None:
                    found.children.update(self.read(keyword.value).children)
                else:
                    place = self._place(keyword, keyword)
                    found.children[keyword.arg] = ConfigEntry(place, self.read(keyword.value))
        return found

    def _add(self, found: ConfigNode, key: ast.expr | None, value: ast.expr) -> None:
        if key is None:
            found.children.update(self.read(value).children)
        elif isinstance(key, ast.Constant) and isinstance(key.value, str | int):
            found.children[key.value] = ConfigEntry(self._place(key, value), self.read(value))

    def _items(self, found: ConfigNode, items: list[ast.expr]) -> None:
        for item in items:
            if isinstance(item, ast.Starred):
                self._extend(found, self.read(item.value))
            else:
                self._extend(
                    found, ConfigNode(found.place, {0: ConfigEntry(self._place(item), self.read(item))})
                )

    def _joined(self, found: ConfigNode, node: ast.BinOp) -> None:
        """Follow ``[...] + [...]`` and ``[...] * n``."""
        left, right = self.read(node.left), self.read(node.right)
        self._extend(found, left)
        if isinstance(node.op, ast.Add):
            self._extend(found, right)
        elif isinstance(node.op, ast.Mult) and len(left.children) == 1:
            found.every = left.children.get(0)

    def _extend(self, found: ConfigNode, more: ConfigNode) -> None:
        start = len(found.children)
        for number, entry in enumerate(more.children.values()):
            found.children[start + number] = entry
        found.every = found.every or more.every

    def _child(self, holder: ConfigNode, key: str | int, otherwise: ConfigNode) -> ConfigNode:
        entry = holder.children.get(key, holder.every if isinstance(key, int) else None)
        return otherwise if entry is None else entry.value

    def _place(self, node: ast.AST, last: ast.AST | None = None) -> SourcePlace:
        """Place of a node; up to the end of ``last`` if it is an item that can be removed."""
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        end = None if last is None else (last.end_lineno, last.end_col_offset + 1)  # type: ignore[attr-defined]
        return SourcePlace(self.file, line, column, end)
