"""Types of arguments, and checks shared by `resid.theory`: an error names the argument, the value and the condition."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from resid.errors import CovarianceError, DepthError, NotFiniteError, OptionError, ShapeError, SizeError

EPS = torch.finfo(torch.float64).eps
#: A real array: a tensor, a NumPy array, or a sequence of numbers, which may be nested.
ArrayLike: TypeAlias = Tensor | np.ndarray | Sequence[Any]
#: Height and width, or one integer for both.
IntPair: TypeAlias = int | Sequence[int]


def as_real(name: str, value: Any) -> Tensor:
    """Return `value` as a dense float32 or float64 tensor; integers, lists and other NumPy arrays become float64."""
    if isinstance(value, Tensor):
        array = value
    else:
        if value is None or isinstance(value, (str, bytes, dict)):  # NumPy would read None as NaN
            raise ShapeError(f"{name} of type {type(value).__name__} is no array of real numbers")
        try:  # a copy, since torch cannot wrap every NumPy array and must not write into this one
            array = torch.from_numpy(np.array(value, dtype=_numpy_type(value)))
        except (TypeError, ValueError, OverflowError) as error:
            raise ShapeError(f"{name} of type {type(value).__name__} is no array of real numbers: {error}") from error
    if array.layout != torch.strided or array.is_meta:
        raise ShapeError(f"{name} is a {array.layout} tensor on {array.device}: a dense one with values is needed")
    if array.is_complex():
        raise ShapeError(f"{name} has dtype {array.dtype}: real numbers are needed")
    if not array.is_floating_point():
        array = array.to(torch.float64)
    if array.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"{name} has dtype {array.dtype}: float32 or float64 is needed, half precision is too coarse")
    # a finite sum proves every entry finite without a temporary as large as the array; an infinite one proves nothing
    if not bool(torch.isfinite(array.detach().sum())) and not bool(torch.isfinite(array).all()):
        bad = int((~torch.isfinite(array)).sum())
        raise NotFiniteError(f"{name} holds {bad} entries that are NaN or infinite: every entry must be finite")
    return array


def _numpy_type(value: Any) -> np.dtype:
    """float32 stays, complex is kept to be refused by name, everything else becomes float64."""
    kind = np.asarray(value).dtype
    return kind if kind == np.float32 or kind.kind == "c" else np.dtype(np.float64)


def as_square(name: str, value: Any) -> Tensor:
    """Return a finite real (d, d) matrix with d >= 1."""
    matrix = as_real(name, value)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ShapeError(f"{name} has shape {tuple(matrix.shape)}: a square matrix (d, d), d >= 1, is needed")
    return matrix


def as_layers(name: str, value: Any) -> Tensor:
    """Return finite real layers (..., depth, d, d), depth >= 1."""
    layers = as_real(name, value)
    if layers.ndim < 3 or layers.shape[-1] != layers.shape[-2] or 0 in layers.shape:
        raise ShapeError(
            f"{name} has shape {tuple(layers.shape)}: layers (..., depth, d, d), depth >= 1 and d >= 1, are needed"
        )
    return layers


def as_depth(name: str, value: Any) -> int:
    """Return an integer depth >= 1."""
    whole = as_whole(value)
    if whole is None or whole < 1:
        raise DepthError(f"{name} = {value!r}: an integer of at least 1 is needed")
    return whole


def as_size(name: str, value: Any, least: int = 1) -> int:
    """Return an integer of at least `least`."""
    whole = as_whole(value)
    if whole is None or whole < least:
        raise SizeError(f"{name} = {value!r}: an integer of at least {least} is needed")
    return whole


def as_pair(name: str, value: Any, least: int = 1) -> tuple[int, int]:
    """Return two integers of at least `least`, for height and width; one integer stands for both."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise SizeError(f"{name} = {value!r}: an integer or two, for height and width, are needed")
        return as_size(f"{name}[0]", value[0], least), as_size(f"{name}[1]", value[1], least)
    whole = as_size(name, value, least)
    return whole, whole


def as_kernel(name: str, value: Any, groups: int = 1) -> Tensor:
    """Return a finite real kernel (c_out, c_in/groups, height, width), no axis empty, c_out a multiple of `groups`."""
    kernel = as_real(name, value)
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise ShapeError(f"{name} has shape {tuple(kernel.shape)}: (c_out, c_in/groups, height, width) is needed")
    if kernel.shape[0] % groups:
        raise ShapeError(f"{name} has {kernel.shape[0]} output channels: groups = {groups} does not divide them")
    return kernel


def as_whole(value: Any) -> int | None:
    """Return `value` as an int if it is a whole number of an integer type (NumPy's, too) and no bool; else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_covariance(name: str, value: Any, d: int) -> Tensor:
    """Return a symmetric positive semidefinite (d, d) matrix; rounding may make it a little asymmetric or negative."""
    sigma = as_square(name, value)
    if sigma.shape[0] != d:
        raise ShapeError(f"{name} has shape {tuple(sigma.shape)}: ({d}, {d}) is needed to fit the other arguments")
    precise = sigma.detach().to(torch.float64)
    scale = float(precise.abs().max())
    tolerance = 100 * d * torch.finfo(sigma.dtype).eps * scale
    skew = float((precise - precise.mT).abs().max())
    if skew > tolerance:
        raise CovarianceError(
            f"{name} is not symmetric: max |{name} - {name}^T| = {skew:.3g} > {tolerance:.3g}; "
            f"pass ({name} + {name}^T)/2 if the difference is noise"
        )
    smallest = float(torch.linalg.eigvalsh((precise + precise.mT) / 2)[0])
    if smallest < -tolerance:
        raise CovarianceError(
            f"{name} has the eigenvalue {smallest:.3g} < 0: a second moment E[x x^T] is positive semidefinite"
        )
    return sigma


def as_samples(X: ArrayLike, Y: ArrayLike, shape: str = "(m, d)") -> tuple[Tensor, Tensor]:
    """Return finite real inputs and outputs of one shape with two axes, not empty; the error calls it `shape`."""
    X, Y = as_real("X", X), as_real("Y", Y)
    if X.ndim != 2 or X.shape != Y.shape or 0 in X.shape:
        raise ShapeError(f"X has shape {tuple(X.shape)}, Y {tuple(Y.shape)}: both must be {shape}")
    return X, Y


def check_option(name: str, value: str, options: Collection[str]) -> str:
    """Return `value` if it is one of `options`."""
    if value not in options:
        raise OptionError(f"{name} = {value!r}: one of {', '.join(map(repr, options))} is needed")
    return value


def check_same_dimension(name: str, matrix: Tensor, d: int, other: str) -> None:
    """Raise an error unless `matrix` is (d, d) like `other`."""
    if matrix.shape[-1] != d:
        raise ShapeError(f"{name} is {tuple(matrix.shape)} and {other} has d = {d}: the dimensions must agree")


def check_positive(name: str, value: Any) -> float:
    """Return a finite number > 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number) or number <= 0:
        raise OptionError(f"{name} = {value!r}: a finite number > 0 is needed")
    return number
