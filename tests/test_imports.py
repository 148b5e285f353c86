"""What an import must not bring along: libraries that only some calls need."""

import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "scipy.optimize", "scipy.sparse.linalg", "sklearn")


def loaded_by(code):
    """Modules in memory after a statement in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [f"theory.{door}" for door in ("factor", "landscape", "norms", "conv_spectrum", "procrustes")] + ["nets.auditing"],
)
def test_an_import_waits_for_no_library_that_only_some_calls_need(module):
    loaded = loaded_by(f"import resid.{module}")
    assert f"resid.{module}" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_package_itself_is_there_at_once():
    """50 ms of one core, of which torch and NumPy would take many times as much."""
    code = "import time; t = time.process_time(); import resid; print(time.process_time() - t)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert min(seconds) < 0.05
    assert loaded_by("import resid").isdisjoint({*HEAVY, "torch", "numpy"})
    assert "matplotlib" not in loaded_by("from resid import audit, construct_memorizer")
