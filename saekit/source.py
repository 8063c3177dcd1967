"""The code behind a figure: the modules that it came through, and a hash that comments do not change."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules_behind(modules: Iterable[str]) -> list[str]:
    """Modules of saekit that these import, directly or through others, and these themselves.

    Imports inside functions and those for type checkers count: the latter name the results that a plot
    draws, and with them the analysis that computed them. A name that a package only passes on leads to
    the module that defines it, and not to all others of the package.

    Parameters
    ----------
    modules : iterable of str
        Full names, such as `"saekit.plots.novelty"`; those outside of saekit are left out.

    Returns
    -------
    list of str
        Sorted.

    Examples
    --------
    >>> behind = modules_behind(["saekit.plots.novelty"])
    >>> "saekit.analysis.novelty" in behind, "saekit.cli" in behind
    (True, False)
    """
    found: set[str] = set()
    todo = [module for module in modules if _file(module)]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [_definer(origin, name) for origin, name in _imports(_read(module)).values()]
    return sorted(found)


def code_hash(modules: Iterable[str]) -> str:
    """SHA-256 over the code of modules of saekit, without comments, docstrings and blank lines.

    Examples
    --------
    >>> len(code_hash(["saekit.colours"]))
    64
    """
    digest = hashlib.sha256()
    for module in modules:
        code = _code(_read(module)).encode()
        digest.update(f"{module} {len(code)}\n".encode() + code)
    return digest.hexdigest()


def _file(module: str) -> Path | None:
    """The file of a module of saekit, if there is one."""
    if module.partition(".")[0] != __package__:
        return None
    place = _ROOT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _read(module: str) -> str:
    file = _file(module)
    if file is None:
        raise ValueError(f"saekit has no module {module!r}.")
    return file.read_text(encoding="utf-8")


def _definer(module: str, name: str) -> str:
    """The module that a name comes from when it is imported from another one."""
    if name and _file(f"{module}.{name}"):
        return f"{module}.{name}"
    passed_on = _imports(_read(module)).get(name)
    return _definer(*passed_on) if passed_on else module


@cache
def _imports(source: str) -> dict[str, tuple[str, str]]:
    """Names that a source imports from saekit, with the module and the name there ("" for a whole module)."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return {name: origin for name, origin in found.items() if _file(origin[0])}


@cache
def _code(source: str) -> str:
    """The lines of a source that hold code, without comments: the same in every version of Python."""
    lines = source.splitlines()
    kept: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (first, column), (last, _) = token.start, token.end
        if token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:column].rstrip()
        elif token.type not in _NO_CODE:
            kept.update(range(first, last + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            kept.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return "\n".join(line for number, line in enumerate(lines, 1) if number in kept)
