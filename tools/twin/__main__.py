"""`python -m tools.twin`: build the staged book with plain, newer Sphinx in its own environment; warnings are errors.

The environment holds the versions of constraints.txt beside this file; what it lacks (torch, the library) it takes from
the project's own environment, which comes later on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tools import assets
from tools.paths import BUILD, STAGE

HERE = Path(__file__).parent
VENV, SOURCE, OUTPUT = BUILD / "twin-venv", BUILD / "twin-source", BUILD / "twin"


def environment() -> Path:
    """The Python of the twin's environment, made at the first call and whenever the constraints change."""
    pins = HERE / "constraints.txt"
    stamp, python = VENV / "constraints.txt", VENV / "bin" / "python"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return python
    shutil.rmtree(VENV, ignore_errors=True)
    venv.create(VENV, with_pip=True)
    names = [line for line in pins.read_text().splitlines() if line and not line.startswith("#")]
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *names], check=True)
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    # a .pth entry is appended to the path: the twin's own packages win, and .pth files of the other are not read
    parents = [sysconfig.get_path("purelib"), str(HERE.parents[1])]
    (Path(site) / "project.pth").write_text("\n".join(dict.fromkeys(parents)) + "\n")
    shutil.copy(pins, stamp)
    return python


def main() -> None:
    """Command line."""
    if not (STAGE / "_toc.yml").exists():
        sys.exit("nothing is staged: run `make book` first")
    python = environment()
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(STAGE, SOURCE)
    shutil.copy(HERE / "conf.py", SOURCE)
    command = [str(python), "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", "-q"]
    variables = {**os.environ, "RESID_MATHJAX": str(assets.fetch(assets.MATHJAX)), "NO_COLOR": "1"}
    done = subprocess.run([*command, str(SOURCE), str(OUTPUT)], env=variables)
    if done.returncode:
        shutil.rmtree(OUTPUT, ignore_errors=True)
        sys.exit("the plain-Sphinx twin does not build: warnings are errors")
    pages = len(list((OUTPUT / "book").rglob("*.html")))
    version = subprocess.run([str(python), "-m", "sphinx", "--version"], capture_output=True, text=True).stdout.strip()
    print(f"twin: {pages} pages with {version}")


if __name__ == "__main__":
    main()
