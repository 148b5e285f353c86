"""Run every notebook as Colab would: nbclient alone, the installed packages as they are, no papermill, no Makefile.

Meant for the inside of Colab's runtime image, after `pip install --no-deps .`; it needs nothing of this project but
`resid` and the notebooks.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.notebooks import TIMEOUT, notebooks, reads_records
from tools.paths import ROOT


def main() -> None:
    """Command line: execute all, report each, fail if any failed."""
    failed = []
    with tempfile.TemporaryDirectory() as records:
        os.environ["RESID_RESULTS"] = records
        for path in sorted(notebooks(), key=reads_records):
            name, started = path.relative_to(ROOT), time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            client = NotebookClient(
                notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
            )
            try:
                client.execute()
            except CellExecutionError as error:
                failed.append(str(name))
                print(f"FAILED {name}: {str(error)[-2000:]}", flush=True)
            else:
                print(f"ran    {name} in {time.perf_counter() - started:.1f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
