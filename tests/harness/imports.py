"""The import statements of the package, for the tests of its shape."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGE", "ROOT", "Import", "imports", "is_module", "package_imports"]

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "pixelmemory"


class Import(NamedTuple):
    """One import statement's target, as written in one file."""

    path: Path
    line: int
    target: str
    typing_only: bool
    in_function: bool

    @property
    def module(self) -> str:
        """The module that holds the statement, without the package's name."""
        return ".".join(self.path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.target}"


def is_module(package: str, name: str) -> bool:
    """Whether ``name`` is a module of ``package``, both as they stand in an import."""
    folder = ROOT.joinpath(*package.split("."))
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


def imports(path: Path) -> Iterator[Import]:
    """The import statements of one file; the package has no relative ones."""
    tree = ast.parse(path.read_text(), str(path))
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only.update(inner for statement in node.body for inner in ast.walk(statement))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    in_function = {inner for node in ast.walk(tree) if isinstance(node, functions) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            module = node.module or ""
            # "from pixelmemory import errors" is about pixelmemory.errors
            targets = [f"{module}.{alias.name}" if is_module(module, alias.name) else module for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(path, node.lineno, target, node in typing_only, node in in_function)


@functools.cache
def package_imports() -> tuple[Import, ...]:
    """Those of every file of the package."""
    return tuple(found for path in sorted(PACKAGE.rglob("*.py")) for found in imports(path))
