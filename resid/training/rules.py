"""Rules for the fields of a recipe: types, ranges, and what has to hold of several at once."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from resid.data.batches import CLASSES, FILL, NORMALIZE, SHAPES
from resid.errors import ResidError
from resid.nets.allconv import AllConvResNet
from resid.nets.preact import PlainNet, PreActResNet, ProcResNet
from resid.nets.shortcut_depth import ShortcutDepthResNet

if TYPE_CHECKING:
    from resid.training.recipe import Recipe

#: Data sets of files that are read as they are needed, with their classes; None where the recipe says how many.
STREAMED: dict[str, int | None] = {"imagenet": 1000, "images": None}
NETWORKS: dict[str, type[nn.Module]] = {
    "allconv": AllConvResNet,
    "plain": PlainNet,
    "preact": PreActResNet,
    "proc": ProcResNet,
    "shortcut_depth": ShortcutDepthResNet,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": (*CLASSES, *STREAMED),
    "network": tuple(NETWORKS),
    "decay": ("all", "convolutions"),
    "schedule": ("constant", "steps", "exponential", "linear"),
    "normalize": NORMALIZE,
    "fill": FILL,
    "precision": ("fp32", "tf32", "bf16"),
    "compile": ("no", "default", "reduce-overhead"),
    "projection": ("formula", "released"),
}
#: Least values.
LEAST: dict[str, float] = {
    "epochs": 1, "steps": 1, "batch": 1, "lr": 0, "momentum": 0, "weight_decay": 0, "factor": 0, "decay_every": 0,
    "warmup": 0, "label_smoothing": 0, "pad": 0, "projection_every": 1, "projection_probability": 0, "seed": 0,
    "classes": 2, "size": 8, "check_training": 0,
    "pool": 1, "train_images": 0, "test_images": 0,
}  # fmt: skip
MOST: dict[str, float] = {"momentum": 1, "factor": 1, "label_smoothing": 1, "projection_probability": 1}


class RecipeError(ResidError):
    """A field of a recipe is unknown, has the wrong type, or does not go with the others."""


def _rising(numbers: tuple[int, ...], least: int) -> bool:
    return all(a < b for a, b in zip((least - 1, *numbers), numbers, strict=False))


#: What has to hold of several fields at once, with the error where it does not, in terms of the recipe `r`.
RULES: tuple[tuple[Callable[[Recipe], bool], str], ...] = (
    (lambda r: (r.epochs is None) != (r.steps is None), "epochs, steps: exactly one of them is needed"),
    (lambda r: not r.nesterov or r.momentum > 0, "nesterov = True: momentum > 0 is needed"),
    (lambda r: (r.schedule == "exponential") == (r.decay_every > 0), "decay_every goes with schedule exponential"),
    (lambda r: (r.schedule == "steps") == bool(r.milestones), "milestones go with schedule steps"),
    (lambda r: _rising(r.milestones, 1), "milestones = {r.milestones}: rising numbers from 1 on are needed"),
    (lambda r: _rising(r.probe_epochs, 0), "probe_epochs = {r.probe_epochs}: rising numbers from 0 on are needed"),
    (
        lambda r: r.projection_every is None or r.projection_probability is None,
        "projection_every, projection_probability: only one of them",
    ),
    (lambda r: not r.projects or r.network == "proc", "network = {r.network!r}: only 'proc' has layers to project"),
    (
        lambda r: r.projects or r.projection == "formula",
        "projection = 'released': projection_every or projection_probability is needed",
    ),
    (
        lambda r: r.warmup == 0 or r.warmup < (r.epochs or r.steps or 0),
        "warmup = {r.warmup}: less than the length is needed",
    ),
    (
        lambda r: (r.classes is not None) == (r.streamed and STREAMED[r.dataset] is None),
        "classes goes with dataset 'images', and only with it",
    ),
    (lambda r: (r.size is not None) == r.streamed, f"size goes with dataset {' or '.join(map(repr, STREAMED))}"),
    (
        lambda r: not r.streamed or (r.pool, r.train_images, r.test_images) == (1, 0, 0),
        "pool, train_images, test_images go with data sets in memory",
    ),
    (
        lambda r: r.streamed or all(side % r.pool == 0 for side in SHAPES[r.dataset][1:]),
        "pool = {r.pool}: a divisor of the image's sides is needed",
    ),
    (
        lambda r: not r.streamed or (r.pad == 0 and r.fill == "zeros"),
        "dataset = {r.dataset!r}: pad = 0 and fill = 'zeros' are needed, for crops are by size",
    ),
)


def check_together(recipe: Recipe) -> None:
    """Check what has to hold of several fields at once.

    Raises:
        RecipeError: see `RULES`; or the network has no such option.
    """
    for holds, text in RULES:
        if not holds(recipe):
            raise RecipeError(text.format(r=recipe))
    known = set(inspect.signature(NETWORKS[recipe.network]).parameters) - {"classes", "channels"}
    if unknown := set(recipe.network_options) - known:
        raise RecipeError(f"options {sorted(unknown)}: {recipe.network!r} has {', '.join(sorted(known))}")


def _kind(field: dataclasses.Field[Any]) -> tuple[str, bool]:
    """Type of a field, and whether it may be None."""
    kind = str(field.type)
    return kind.removesuffix(" | None"), kind.endswith(" | None")


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of a field in its type.

    Raises:
        RecipeError: it has another type, or is out of its range.
    """
    name, (kind, optional) = field.name, _kind(field)
    if value is None and optional:
        return None
    if kind == "tuple[int, ...]":
        if not isinstance(value, (list, tuple)) or any(type(part) is not int for part in value):
            raise RecipeError(f"{name} = {value!r}: a list of integers is needed")
        return tuple(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind:
        raise RecipeError(f"{name} = {value!r}: {kind} is needed, not {type(value).__name__}")
    if name in CHOICES and value not in CHOICES[name]:
        raise RecipeError(f"{name} = {value!r}: one of {', '.join(CHOICES[name])} is needed")
    if name in LEAST:
        least, most = LEAST[name], MOST.get(name, math.inf)
        if not (math.isfinite(value) and least <= value <= most):
            above = "" if most == math.inf else f" and at most {most}"
            raise RecipeError(f"{name} = {value!r}: at least {least}{above} is needed")
        if name in ("projection_probability", "factor") and value == 0:
            raise RecipeError(f"{name} = 0: more than 0 is needed")
    return value


def parsed(field: dataclasses.Field[Any], text: str) -> Any:
    """Read a field's value from the command line; `checked` judges it afterwards.

    Raises:
        RecipeError: the text is none of its type.
    """
    kind, optional = _kind(field)
    if optional and text.lower() == "none":
        return None
    try:
        if kind == "tuple[int, ...]":
            return tuple(int(part) for part in text.split(",") if part.strip())
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise RecipeError(f"{field.name}={text}: {kind} is needed") from None
