"""Everything that decides a training run, in one frozen record that can be written, read, compared and hashed."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resid.data.batches import CLASSES, FILL, NORMALIZE, SHAPES, seed_of
from resid.errors import ResidError
from resid.nets.allconv import AllConvResNet
from resid.nets.preact import PlainNet, PreActResNet, ProcResNet
from resid.nets.shortcut_depth import ShortcutDepthResNet

__all__ = ["NETWORKS", "STREAMED", "Recipe", "RecipeError", "build_network"]

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
#: Least values; floats are below `MOST` as well.
LEAST: dict[str, float] = {
    "epochs": 1, "steps": 1, "batch": 1, "lr": 0, "momentum": 0, "weight_decay": 0, "factor": 0, "decay_every": 0,
    "warmup": 0, "label_smoothing": 0, "pad": 0, "projection_every": 1, "projection_probability": 0, "seed": 0,
    "classes": 2, "size": 8, "micro_batch": 1, "check_training": 0,
}  # fmt: skip
MOST: dict[str, float] = {"momentum": 1, "factor": 1, "label_smoothing": 1, "projection_probability": 1}
#: Fields that came later: where they have their defaults JSON leaves them out, so that older hashes stay as they were.
LATER = ("classes", "size", "micro_batch", "check_training", "graph", "projection")


class RecipeError(ResidError):
    """A field of a recipe is unknown, has the wrong type, or does not go with the others."""


@dataclass(frozen=True)
class Recipe:
    """One training run by stochastic gradient descent on the cross entropy.

    Times (milestones, decay_every, warmup) are in epochs or in steps, whichever the length is given in. A step is one
    batch, over all ranks; an epoch is ceil(n / batch) steps.

    Args:
        dataset: see `resid.data.batches.load_split`; or "imagenet", or "images", any folder of images by class, both
            read from files as they are needed (`resid.data.image_files`). classes: of "images", and only there.
        size: pixels of the square crops of "imagenet" and "images": a random part of the image in training, the middle
            of it in tests. network: "allconv", "plain", "preact", "proc" or "shortcut_depth".
        options: of the network's constructor, but for classes and channels, which the data set decides.
        epochs, steps: the length; exactly one of them. batch: samples a step, over all ranks.
        micro_batch: samples that a rank passes through the network at once; of a larger share the gradients are added
            up. None: the share as it is.
        lr, momentum, nesterov, weight_decay: of SGD. decay: what decays, "all" parameters or "convolutions" alone.
        schedule: of the learning rate: "constant"; "steps", times `factor` at each milestone; "exponential", times
            `factor` every `decay_every`; "linear", to zero at the end. warmup: time of a linear rise from zero.
        milestones, factor, decay_every: see there. label_smoothing: of the cross entropy.
        normalize: pixels by the training set's mean and deviation per channel ("dataset") or each image by its own
            ("image"). pad, fill, flip: random crop and mirror, see `resid.data.batches`; pad = 0 is no crop.
        precision: "fp32", "tf32", or "bf16" (autocast, weights in float32). channels_last: memory layout.
        compile: blocks by torch.compile, "default", or "reduce-overhead", which records CUDA graphs of them.
        graph: forward and backward pass of the whole step as one CUDA graph, see `resid.training.step_graph`.
        projection_every, projection_probability: project the linear convolutions of "proc" after every so many steps,
            or after each with this probability; neither: never. projection: by the "formula", or as "released", slip
            and all.
        probe_epochs: epochs at whose first step the gradient ratios of the blocks are measured, and the norms of their
            branches; 0 the first.
        check_training: so many training images, evenly spread, on which the final network is tested, too, without
            augmentation.
        seed: of weights, order, augmentation and projection.

    Raises:
        RecipeError: see there.

    Example:
        >>> recipe = Recipe(dataset="digits", network="allconv", options={"blocks": 1}, epochs=3)
        >>> recipe == Recipe.from_json(recipe.to_json()), recipe.replace(lr=0.2).hash == recipe.hash
        (True, False)
        >>> recipe.with_settings(["lr=0.2", "options.blocks=2"]).network_options
        {'blocks': 2}
    """

    dataset: str = "cifar10"
    network: str = "allconv"
    options: Any = ()
    epochs: int | None = None
    steps: int | None = None
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay: str = "all"
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    decay_every: int = 0
    warmup: int = 0
    label_smoothing: float = 0.0
    normalize: str = "dataset"
    pad: int = 4
    fill: str = "zeros"
    flip: bool = True
    precision: str = "fp32"
    channels_last: bool = False
    compile: str = "no"
    projection_every: int | None = None
    projection_probability: float | None = None
    probe_epochs: tuple[int, ...] = ()
    seed: int = 0
    classes: int | None = None
    size: int | None = None
    micro_batch: int | None = None
    check_training: int = 0
    graph: bool = False
    projection: str = "formula"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _frozen_options(self.options))
        for field in dataclasses.fields(self):
            if field.name != "options":
                object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        self._check_together()

    @property
    def network_options(self) -> dict[str, Any]:
        """The options as a dictionary."""
        return dict(self.options)

    @property
    def streamed(self) -> bool:
        """Whether the images are read from files as they are needed."""
        return self.dataset in STREAMED

    @property
    def class_count(self) -> int:
        """Classes of the data set."""
        known = CLASSES.get(self.dataset) or STREAMED.get(self.dataset) or self.classes
        assert known is not None  # checked when the recipe was made
        return known

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images as the network gets them."""
        return SHAPES[self.dataset] if self.size is None else (3, self.size, self.size)

    @property
    def layout(self) -> torch.memory_format:
        """Of images and weights in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that depend on every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed; `options` are replaced as a whole."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """A copy with fields set as on the command line: key=value, or options.key=value.

        Numbers, true, false and none are read as such; lists are separated by commas, `milestones=` is an empty one.

        Raises:
            RecipeError: no such field, or no such value.
        """
        changes: dict[str, Any] = {}
        options = self.network_options
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise RecipeError(f"{setting!r}: key=value is needed")
            if key.startswith("options."):
                options[key.removeprefix("options.")] = _parsed_option(text)
                changes["options"] = options
                continue
            _check_names([key])
            (field,) = (field for field in dataclasses.fields(self) if field.name == key)
            if key == "options":
                raise RecipeError(f"{setting!r}: options are set one by one, options.key=value")
            changes[key] = _parsed(field, text)
        return self.replace(**changes)

    def to_json(self) -> str:
        """All fields as JSON, in a fixed order; those that came later only where they are not at their defaults."""
        fields = {**dataclasses.asdict(self), "options": self.network_options}
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in LATER}
        kept = {name: value for name, value in fields.items() if defaults.get(name, ...) != value}
        return json.dumps(kept, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            RecipeError: not JSON, or not the fields of a recipe.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"a recipe in JSON is needed: {error}") from error
        if not isinstance(content, dict):
            raise RecipeError(f"a recipe is a JSON object, not {type(content).__name__}")
        _check_names(content)
        return cls(**content)

    def differences(self, other: Recipe) -> list[str]:
        """Lines "field: mine, theirs" for the fields in which two recipes differ."""
        lines = []
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                lines.append(f"{field.name}: {_shown(mine)}, {_shown(theirs)}")
        return lines

    def total_steps(self, per_epoch: int) -> int:
        """The length in steps."""
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch

    def rate(self, step: int, per_epoch: int) -> float:
        """The learning rate of a step, 0 the first.

        Example:
            >>> recipe = Recipe(epochs=4, schedule="steps", milestones=(2, 3))
            >>> [round(recipe.rate(step, per_epoch=10), 6) for step in (0, 19, 20, 30)]
            [0.1, 0.1, 0.01, 0.001]
        """
        unit = 1 if self.steps is not None else per_epoch
        time, whole = step / unit, step // unit
        rate = self.lr
        if self.schedule == "steps":
            rate *= self.factor ** sum(whole >= milestone for milestone in self.milestones)
        elif self.schedule == "exponential":
            rate *= self.factor ** (whole // self.decay_every)
        elif self.schedule == "linear":
            end = self.total_steps(per_epoch) / unit
            rate *= min(1.0, (end - time) / (end - self.warmup))
        return rate * min(1.0, (time + 1 / unit) / self.warmup) if self.warmup else rate

    def _check_together(self) -> None:
        length = self.epochs if self.steps is None else self.steps
        rules = [
            ((self.epochs is None) != (self.steps is None), "epochs, steps: exactly one of them is needed"),
            (not self.nesterov or self.momentum > 0, "nesterov = True: momentum > 0 is needed"),
            ((self.schedule == "exponential") == (self.decay_every > 0), "decay_every goes with schedule exponential"),
            ((self.schedule == "steps") == bool(self.milestones), "milestones go with schedule steps"),
            (_rising(self.milestones, 1), f"milestones = {self.milestones}: rising numbers from 1 on are needed"),
            (_rising(self.probe_epochs, 0), f"probe_epochs = {self.probe_epochs}: rising numbers from 0 on are needed"),
            (
                self.projection_every is None or self.projection_probability is None,
                "projection_every, projection_probability: only one of them",
            ),
            (
                (self.projection_every is None and self.projection_probability is None) or self.network == "proc",
                f"network = {self.network!r}: only 'proc' has layers to project",
            ),
            (
                self.projection == "formula"
                or self.projection_every is not None
                or self.projection_probability is not None,
                "projection = 'released': projection_every or projection_probability is needed",
            ),
            (
                self.warmup == 0 or self.warmup < (length or 0),
                f"warmup = {self.warmup}: less than the length is needed",
            ),
            (
                (self.classes is not None) == (self.streamed and STREAMED[self.dataset] is None),
                "classes goes with dataset 'images', and only with it",
            ),
            ((self.size is not None) == self.streamed, f"size goes with dataset {' or '.join(map(repr, STREAMED))}"),
            (
                not self.streamed or (self.pad == 0 and self.fill == "zeros"),
                f"dataset = {self.dataset!r}: pad = 0 and fill = 'zeros' are needed, for crops are by size",
            ),
            (
                self.micro_batch is None or not self.probe_epochs,
                "micro_batch, probe_epochs: gradients are probed where a share passes through the network at once",
            ),
            (
                not self.graph or self.compile != "reduce-overhead",
                "graph = True: compile = 'no' or 'default' is needed, for one graph cannot record others",
            ),
        ]
        for holds, text in rules:
            if not holds:
                raise RecipeError(text)
        known = set(inspect.signature(NETWORKS[self.network]).parameters) - {"classes", "channels"}
        if unknown := set(self.network_options) - known:
            raise RecipeError(f"options {sorted(unknown)}: {self.network!r} has {', '.join(sorted(known))}")


def build_network(recipe: Recipe) -> nn.Module:
    """The network of a recipe with the initial weights that its seed decides, on the CPU, in float32.

    The state of torch's own generator is left as it was.

    Raises:
        RecipeError: the network does not take such options.
    """
    options = recipe.network_options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", recipe.seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of tensors without an element, which are refused below
                network = NETWORKS[recipe.network](
                    classes=recipe.class_count, channels=recipe.image_shape[0], **options
                )
        except ResidError:
            raise
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # torch's own, of a width of -1, say
            raise RecipeError(
                f"options = {options!r}: no network {recipe.network!r} is made of them: {error}"
            ) from error
    if empty := [name for name, weight in network.named_parameters() if not weight.numel()]:
        raise RecipeError(f"options = {options!r}: the network {recipe.network!r} has no weight in {empty[0]}")
    return network


def _rising(numbers: tuple[int, ...], least: int) -> bool:
    return all(a < b for a, b in zip((least - 1, *numbers), numbers, strict=False))


def _shown(value: Any) -> str:
    return str(dict(value)) if isinstance(value, tuple) and value and isinstance(value[0], tuple) else repr(value)


def _check_names(names: Iterable[str]) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"is {near[0]!r} meant?" if near else f"there are {', '.join(known)}"
            raise RecipeError(f"no field {name!r} in a recipe: {hint}")


def _frozen_options(value: Any) -> tuple[tuple[str, Any], ...]:
    """Options as sorted pairs of a name and a plain value."""
    try:
        pairs = dict(value.items() if isinstance(value, Mapping) else value)
    except (TypeError, ValueError, AttributeError):
        raise RecipeError(f"options = {value!r}: a dictionary is needed") from None
    frozen = []
    for name, given in sorted(pairs.items()):
        plain = tuple(given) if isinstance(given, (list, tuple)) else given
        if not all(type(part) in (bool, int, float, str) for part in (plain if isinstance(plain, tuple) else (plain,))):
            raise RecipeError(f"options[{name!r}] = {given!r}: numbers, names, or lists of them are needed")
        frozen.append((str(name), plain))
    return tuple(frozen)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value of a field in its type, or an error that names it."""
    name, kind = field.name, str(field.type)
    if value is None and "None" in kind:
        return None
    kind = kind.removesuffix(" | None")
    if kind == "tuple[int, ...]":
        if not isinstance(value, (list, tuple)) or any(type(part) is not int for part in value):
            raise RecipeError(f"{name} = {value!r}: a list of integers is needed")
        return tuple(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[kind]
    if type(value) is not wanted:
        raise RecipeError(f"{name} = {value!r}: {kind} is needed, not {type(value).__name__}")
    if name in CHOICES and value not in CHOICES[name]:
        raise RecipeError(f"{name} = {value!r}: one of {', '.join(CHOICES[name])} is needed")
    if name in LEAST:
        _check_range(name, value)
    return value


def _check_range(name: str, value: Any) -> None:
    least, most = LEAST[name], MOST.get(name, math.inf)
    if not (math.isfinite(value) and least <= value <= most):
        above = "" if most == math.inf else f" and at most {most}"
        raise RecipeError(f"{name} = {value!r}: at least {least}{above} is needed")
    if name in ("projection_probability", "factor") and value == 0:
        raise RecipeError(f"{name} = 0: more than 0 is needed")


def _parsed(field: dataclasses.Field[Any], text: str) -> Any:
    """A field's value from the command line; `_checked` judges it afterwards."""
    kind = str(field.type)
    if "None" in kind and text.lower() == "none":
        return None
    kind = kind.removesuffix(" | None")
    try:
        if kind == "tuple[int, ...]":
            return tuple(int(part) for part in text.split(",") if part.strip())
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise RecipeError(f"{field.name}={text}: {kind} is needed") from None


def _parsed_option(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
