"""What the caller has set in torch, kept away from computations whose results must not depend on it.

Mixed precision (autocast) casts matrix products to half precision; a default device or dtype changes what tensors are
made; `no_grad` and `inference_mode` switch derivatives off. Every public function of `resid.theory`, and of
`resid.nets` where it computes something, is decorated with `isolated`. Products in TF32 are the matter of
`resid._precision`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar, overload

import torch

__all__ = ["isolated", "isolation", "uncompiled"]

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def isolation(grad: bool | None = None, factories: bool = True) -> Iterator[None]:
    """Switch autocast off, and what else the caller has set; afterwards everything is as it was.

    Args:
        grad: True: derivatives are recorded, False: they are not, None: the caller decides.
        factories: whether tensors are made on the CPU, in float32, where nothing else is said. False where functions of
            the caller are called, which may count on the caller's defaults.
    """
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if factories and torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if factories and torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if grad:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        elif grad is False:
            stack.enter_context(torch.no_grad())
        yield


@overload
def isolated(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def isolated(*, grad: bool | None = None, factories: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def isolated(
    function: Callable[P, R] | None = None, /, *, grad: bool | None = None, factories: bool = True
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function or method to always run in an `isolation`, and not to be compiled.

    Args:
        function: what to decorate; None where options are passed first.
        grad: passed on to `isolation`.
        factories: passed on to `isolation`.

    Example:
        >>> @isolated
        ... def square(x):
        ...     return x @ x
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     square(torch.eye(2)).dtype, (torch.eye(2) @ torch.eye(2)).dtype
        (torch.float32, torch.bfloat16)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with isolation(grad, factories):
                return function(*args, **kwargs)

        # as `torch.compiler.disable`, but without an import of the compiler, which takes seconds, before it is in use
        plain = torch._disable_dynamo(run)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():  # these functions branch on values: as written, rather than in fragments
                return plain(*args, **kwargs)
            return run(*args, **kwargs)

        return call

    return decorate if function is None else decorate(function)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` has compiled as it is written, so that hooks that were added later are called."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and the import takes seconds
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield
