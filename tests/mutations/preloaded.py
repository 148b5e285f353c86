"""A process that has the large libraries loaded and forks one for each program it is told to run.

A script, not a module: nothing of the project may be loaded here, since each program brings a copy of its own. Reads
lines of JSON, each a program with "arguments" (of pytest, or the path of one script), "folder", "environment", "root"
(first place to look for modules), "output" (file) and "seconds" (most), and answers each with its exit status.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import traceback

LIBRARIES = (
    "matplotlib.pyplot", "scipy.linalg", "scipy.sparse.linalg", "sklearn.datasets", "sympy", "torch.distributed",
    "torch.func", "torch.utils.data",
)  # fmt: skip


def run(job):
    """In the forked process: become the program."""
    signal.alarm(job["seconds"])
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.path.insert(0, job["root"])
    with open(job["output"], "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    arguments = job["arguments"]
    if arguments[0].endswith(".py") and len(arguments) == 1:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    import pytest

    sys.argv = ["pytest", *arguments]
    return int(pytest.main(arguments))


def main():
    """Serve until the input ends."""
    sys.path.pop(0)  # the folder of this script
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                status = run(job)
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else bool(error.code)
            except BaseException:
                sys.stdout.flush()  # the error is to be the last line
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
