"""Every name that a package promises is there, under today's name and under the one it had before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import resid
from resid._moved import MOVED

PACKAGE = Path(resid.__file__).parent
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
THEORY = ("factor", "landscape", "shortcut", "memorize", "small_weights", "norms", "conv_spectrum", "procrustes")


def promised(stub):
    """(name, module that has it) of a front door."""
    package = "resid." * (stub.parent != PACKAGE) + stub.parent.name
    for node in ast.walk(ast.parse(stub.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name  # re-exported for type checkers
                yield alias.name, f"{package}.{node.module or alias.name}"


@pytest.mark.parametrize("stub", STUBS, ids=lambda s: s.parent.name)
def test_a_front_door_gives_what_it_promises(stub):
    package = importlib.import_module("resid." * (stub.parent != PACKAGE) + stub.parent.name)
    names = dict(promised(stub))
    assert sorted(names) == sorted(package.__all__) == sorted(dir(package))
    for name, module in names.items():
        behind = importlib.import_module(module)
        value = getattr(package, name)
        assert value is (behind if module == f"{package.__name__}.{name}" else getattr(behind, name))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = package.nothing_of_the_kind


@pytest.mark.parametrize("door", THEORY)
def test_the_eight_doors_of_the_theory(door):
    module = importlib.import_module(f"resid.theory.{door}")
    assert module.__all__
    assert module.__doc__
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert not name.startswith("_")


def test_the_version_is_that_of_the_project():
    assert resid.__version__ == "0.1.0"  # tests/book/test_project.py compares it with pyproject.toml


@pytest.mark.parametrize("old", sorted(set(MOVED) - {"resid.lab"}))
def test_an_old_name_still_works_and_says_so(old):
    code = f"""
import warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import {old} as old
import {MOVED[old]} as new
assert [str(w.message) for w in seen if w.category is DeprecationWarning and "resid" in str(w.message)]
assert new.__all__ and all(getattr(old, name) is getattr(new, name) for name in new.__all__)
from {old} import *
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["resid.lab.nothing", "resid.nothing", "resid.trials.factor"])
@pytest.mark.filterwarnings("ignore:resid.lab is now")
def test_a_name_that_never_was_is_an_import_error(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
