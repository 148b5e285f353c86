"""The compiled twin of ReLU descent on CPUs, built by the C++ compiler of the machine where there is one."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from resid.errors import OptionError
from resid.theory.shortcut.network import ShortcutNetwork

SOURCE = Path(__file__).with_name("_relu_descent.cpp")
REAL = {torch.float32: "float", torch.float64: "double"}


def unsuited(network: ShortcutNetwork, like: Tensor) -> str:
    """Why networks of this kind cannot be trained by compiled code with weights such as `like`, or ""."""
    if network.activation != "relu" or network.position != "mid":
        return f"it knows ReLU at 'mid' only, not {network.activation!r} at {network.position!r}"
    if like.device.type != "cpu" or like.dtype not in REAL:
        return f"it is for float32 or float64 on the CPU, not {like.dtype} on {like.device}"
    try:
        _library(network.width, REAL[like.dtype], _compiler())
    except OptionError as error:
        return str(error)
    return ""


def _compiler() -> str:
    """Path of the C++ compiler: CXX, or else of one with a usual name; "" if there is none."""
    wish = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [wish] if wish else ["c++", "g++", "clang++"])), "")


@cache
def _library(width: int, real: str, program: str) -> ctypes.CDLL:
    """Compiled for this machine, once a process, which takes a second or two.

    Raises:
        OptionError: there is no compiler, or it fails.
    """
    if not program:
        raise OptionError("there is no C++ compiler of the name in CXX, or of a usual one")
    tune = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "relu_descent.so"
        flags = ["-O3", tune, "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC"]
        command = [program, *flags, f"-DWIDTH={width}", f"-DREAL={real}"]
        done = subprocess.run([*command, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OptionError(f"{program} cannot compile {SOURCE.name}: {done.stderr[-2000:]}")
        library = ctypes.CDLL(str(target))
    pointer, long = ctypes.c_void_p, ctypes.c_long
    library.samples_in_a_block.restype = long
    library.squares_and_gradient.restype = ctypes.c_double
    library.squares_and_gradient.argtypes = (pointer, long, long, long, pointer, pointer, long, pointer)
    return library


def evaluator(
    network: ShortcutNetwork, X: Tensor, Y: Tensor, like: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """weights (runs, units, length, d, d) -> loss (runs,) and gradient; X, Y: (d, m). As many runs at once as threads.

    Raises:
        OptionError: there is no compiler, or it fails.
    """
    library = _library(network.width, REAL[like.dtype], _compiler())
    block, m = library.samples_in_a_block(), X.shape[1]
    # samples of zeros fill the last block: they stay zero in all layers, and add nothing
    x, y = (torch.nn.functional.pad(t.to(like), (0, -m % block)).contiguous() for t in (X, Y))

    def evaluate(W: Tensor) -> tuple[Tensor, Tensor]:
        W = W.contiguous()
        gradient = torch.empty_like(W)

        def one(run: int) -> float:
            return library.squares_and_gradient(
                W[run].data_ptr(), network.units, network.length, network.shortcut,
                x.data_ptr(), y.data_ptr(), x.shape[1], gradient[run].data_ptr(),
            )  # fmt: skip

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # which hold no lock of Python's in there
            squares = list(threads.map(one, range(len(W))))
        return torch.tensor(squares, dtype=W.dtype) / (2 * m), gradient / m

    return evaluate
