"""Which code a piece of code depends on: the files of this package that it imports, directly or through others."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Suffixes of files that code reads beside itself: compiled kernels and embedded data.
DATA = (".cpp", ".npz")
PACKAGE = Path(__file__).resolve().parent


def imported_files(source: str, root: Path) -> set[Path]:
    """The files of `resid` that running `source` imports, followed through the package.

    Args:
        source: Python code.
        root: the folder that holds `resid`.
    """
    found: set[Path] = set()
    todo = set(imported_names(source))
    while todo:
        for path in _files(todo.pop(), root):
            if path not in found:
                found.add(path)
                todo |= _imports_of(path)
    return found


def code_hash(sources: Iterable[Path], root: Path | None = None) -> str:
    """A hash of what some files of Python do: of their code and of all code of `resid` that they import.

    Comments, docstrings and layout do not count. Compiled kernels and embedded data of the package count whole.

    Args:
        sources: files of Python; those with another suffix count whole.
        root: the folder that holds `resid`; default the one this module lies in.
    """
    root = PACKAGE.parent if root is None else root.resolve()
    given = [Path(source).resolve() for source in sources]
    files = set(given)
    for path in given:
        if path.suffix == ".py":
            files |= imported_files(path.read_text("utf-8"), root)
    if given:
        files |= {path for path in (root / "resid").rglob("*") if path.suffix in DATA}
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(f"{name} {hashlib.sha256(_content(path)).hexdigest()}\n".encode())
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    """A file's bytes; of Python the syntax tree without docstrings."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:]
    return _plain(tree).encode()


def _plain(node: object) -> str:
    """A syntax tree as text that is the same in every version of Python: without the fields that are empty."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(f'{name}={_plain(value)}' for name, value in fields)})"
    return f"[{', '.join(map(_plain, node))}]" if isinstance(node, list) else repr(node)


def imported_names(source: str) -> Iterator[str]:
    """Dotted names that running `source` imports; of `from a import b` the name a.b, which may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "resid")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "resid":
            yield from (f"{node.module}.{a.name}" for a in node.names)


@functools.cache
def _imports_of(path: Path) -> frozenset[str]:
    return frozenset(imported_names(path.read_text("utf-8")))


@functools.cache
def _offers(stub: Path) -> dict[str, str]:
    """Names that a package offers and imports when they are used -> the module of each below it, "" of a module."""
    offers: dict[str, str] = {}
    for node in ast.walk(ast.parse(stub.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            offers.update({a.name: node.module or "" for a in node.names})
    return offers


def _files(name: str, root: Path) -> list[Path]:
    """The file of a dotted name, the `__init__.py` of each package above it, and the files behind a lazy name.

    A package that is itself imported may be asked for any of the names that it offers, and so depends on all.
    """
    parts = name.split(".")
    files = []
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        files += [p for p in (base / "__init__.py", base.with_suffix(".py")) if p.exists()]
        stub = base / "__init__.pyi"
        if stub.exists():
            files.append(stub)
            offers = _offers(stub)
            whole = length == len(parts)
            behind = {
                offers[one] or (one if whole else "")
                for one in (offers if whole else parts[length:][:1])
                if one in offers
            }
            for module in behind - {""}:
                files += _files(".".join([*parts[:length], module]), root)
    return files
