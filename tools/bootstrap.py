"""Create .venv and install the project in it. Runs on a bare Python 3.11 or newer: standard library only.

PyTorch is installed first, because plain `pip install torch` on Linux fetches gigabytes of CUDA libraries: without an
NVIDIA driver the CPU build is taken, from PyTorch's own index where that answers, else from wherever pip finds the
pinned version. TORCH=cpu or TORCH=cuda in the environment decides instead.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Build the environment, or say why it cannot be built."""
    if sys.version_info < (3, 11):  # noqa: UP036 - it runs before anything has checked
        sys.exit(f"Python {platform.python_version()} is too old: use 3.11, 3.12 or 3.13 (make PYTHON=python3.12 ...)")
    if VENV.exists() and not whole():
        if VENV.is_symlink():
            sys.exit(f"{VENV.name} is a link to an environment without pip: put pip there, or remove the link")
        print(f"{VENV.name} was not finished: it is made anew", flush=True)
        shutil.rmtree(VENV)
    if not VENV.exists():
        print(f"creating {VENV.name} with Python {platform.python_version()}", flush=True)
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("creating the environment failed; on Debian or Ubuntu install the package python3-venv")
    python = str(VENV / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pip += ["-c", str(ROOT / "constraints.txt")]
    # pip 23.0, which Debian 12 brings, needs more than ten minutes to resolve the extras; a current one seconds
    subprocess.run([*pip, "--upgrade", "pip>=25"], check=True)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        pin = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        assert pin is not None
        source = torch_source()
        print(f"installing torch {pin[1]} ({' '.join(source) or 'default index'})", flush=True)
        subprocess.run([*pip, *source, f"torch=={pin[1]}"], check=True)
    print("installing the project with the extras book, run and test", flush=True)
    subprocess.run([*pip, "-e", f"{ROOT}[book,run,test]"], check=True)


def whole() -> bool:
    """Whether the environment has come as far as to have pip; an interrupt may have left it half made."""
    python = VENV / "bin" / "python"
    # an environment of another tool may have no pip, and can have it
    words = (["-m", "pip", "--version"], ["-m", "ensurepip"])
    return python.exists() and any(not subprocess.run([str(python), *w], capture_output=True).returncode for w in words)


def torch_source() -> list[str]:
    """pip options for the build of PyTorch that suits this machine."""
    wish = os.environ.get("TORCH", "auto")
    if wish not in ("auto", "cpu", "cuda"):
        sys.exit(f"TORCH={wish}: auto, cpu or cuda is needed")
    cuda = wish == "cuda" or (wish == "auto" and shutil.which("nvidia-smi") is not None)
    if platform.system() != "Linux" or cuda:
        return []
    try:
        urllib.request.urlopen(CPU_INDEX + "/", timeout=5).close()
    except OSError:
        print(f"{CPU_INDEX} does not answer; torch comes from pip's default index", flush=True)
        return []
    return ["--index-url", CPU_INDEX, "--extra-index-url", "https://pypi.org/simple"]


if __name__ == "__main__":
    main()
