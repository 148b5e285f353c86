"""What an import must not bring along: libraries that only some calls need."""

import subprocess
import sys

HEAVY = {"matplotlib", "scipy.optimize", "scipy.sparse.linalg", "sklearn"}
DOORS = ("factor", "landscape", "memorize", "small_weights", "norms", "conv_spectrum", "procrustes", "shortcut")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_no_import_waits_for_a_library_that_only_some_calls_need():
    modules = ", ".join([f"resid.theory.{door}" for door in DOORS] + ["resid.nets.auditing", "resid.nets.shapes"])
    loaded = python(f"import sys, {modules}; from resid import audit; print(*sys.modules)")
    assert "resid.nets.auditing" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_the_package_itself_is_there_at_once():
    """50 ms of one core, of which torch and NumPy would take many times as much."""
    code = "import sys, time; t = time.process_time(); import resid; print(time.process_time() - t, *sys.modules)"
    runs = [python(code) for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.05
    assert {*HEAVY, "torch", "numpy"}.isdisjoint(runs[0])
