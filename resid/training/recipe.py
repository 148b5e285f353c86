"""Everything that decides a training run, in one frozen record that can be written, read, compared and hashed."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resid.data.batches import CLASSES, SHAPES, seed_of
from resid.errors import ResidError
from resid.training.rules import NETWORKS, STREAMED, RecipeError, check_together, checked, parsed

__all__ = ["NETWORKS", "STREAMED", "Recipe", "RecipeError", "build_network"]

#: Fields that came later: where they have their defaults JSON leaves them out, so that older hashes stay as they were.
LATER = ("classes", "size", "check_training", "projection", "pool", "train_images", "test_images")


@dataclass(frozen=True)
class Recipe:
    """One training run by stochastic gradient descent on the cross entropy.

    Times (milestones, decay_every, warmup) are in epochs or in steps, whichever the length is given in. A step is one
    batch, over all ranks; an epoch is ceil(n / batch) steps.

    Args:
        dataset: see `resid.data.load_dataset`; or "imagenet", or "images", any folder of images by class, both
            read from files as they are needed.
        network: "allconv", "plain", "preact", "proc" or "shortcut_depth".
        options: of the network's constructor, but for classes and channels, which the data set decides.
        epochs: length in epochs, or None.
        steps: length in steps, or None; exactly one of the two is given.
        batch: samples a step, over all ranks.
        lr: learning rate.
        momentum: of SGD.
        nesterov: whether its momentum is Nesterov's.
        weight_decay: of SGD.
        decay: what decays, "all" parameters or "convolutions" alone.
        schedule: of the learning rate: "constant"; "steps", times `factor` at each milestone; "exponential", times
            `factor` every `decay_every`; "linear", to zero at the end.
        milestones: times of the schedule "steps".
        factor: of the schedules "steps" and "exponential".
        decay_every: time of the schedule "exponential".
        warmup: time of a linear rise from zero.
        label_smoothing: of the cross entropy.
        normalize: pixels by the training set's mean and deviation per channel ("dataset") or each image by its own
            ("image").
        pad: pixels around an image before its random crop, see `resid.data.batches`; 0 is no crop.
        fill: of these pixels.
        flip: whether images are mirrored at random.
        precision: "fp32", "tf32", or "bf16" (autocast, weights in float32).
        channels_last: memory layout.
        compile: blocks by torch.compile, "default", or "reduce-overhead", which records CUDA graphs of them.
        projection_every: project the linear convolutions of "proc" after every so many steps.
        projection_probability: project them after each step with this probability; neither: never.
        probe_epochs: epochs at whose first step the gradient ratios of the blocks are measured, and the norms of their
            branches; 0 the first.
        seed: of weights, order, augmentation and projection.
        classes: of "images", and only there.
        size: pixels of the square crops of "imagenet" and "images": a random part of the image in training, the middle
            of it in tests.
        check_training: number of training images, evenly spread, on which the final network is tested, too, without
            augmentation.
        projection: by the "formula", or as "released", slip and all.
        pool: pixels of a side that are averaged to one, before anything else; 1: images as they are.
        train_images: number of training images, evenly spread over the data set; 0: all.
        test_images: the same of test images.

    Raises:
        RecipeError: a field is unknown, has the wrong type, is out of its range, or does not go with the others.

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
    check_training: int = 0
    projection: str = "formula"
    pool: int = 1
    train_images: int = 0
    test_images: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", _frozen_options(self.options))
        for field in dataclasses.fields(self):
            if field.name != "options":
                object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        check_together(self)

    @property
    def network_options(self) -> dict[str, Any]:
        """Options of the network as a dictionary."""
        return dict(self.options)

    @property
    def streamed(self) -> bool:
        """Whether the images are read from files as they are needed."""
        return self.dataset in STREAMED

    @property
    def projects(self) -> bool:
        """Whether linear convolutions are projected."""
        return self.projection_every is not None or self.projection_probability is not None

    @property
    def class_count(self) -> int:
        """Classes of the data set."""
        known = CLASSES.get(self.dataset) or STREAMED.get(self.dataset) or self.classes
        assert known is not None  # checked when the recipe was made
        return known

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images as the network gets them."""
        if self.size is not None:
            return (3, self.size, self.size)
        channels, height, width = SHAPES[self.dataset]
        return (channels, height // self.pool, width // self.pool)

    @property
    def layout(self) -> torch.memory_format:
        """Layout of images and weights in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that depend on every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed; `options` are replaced as a whole."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """Return a copy with fields set as on the command line: key=value, or options.key=value.

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
                with suppress(json.JSONDecodeError):
                    text = json.loads(text)
                options[key.removeprefix("options.")] = text
                changes["options"] = options
                continue
            _check_names([key])
            (field,) = (field for field in dataclasses.fields(self) if field.name == key)
            if key == "options":
                raise RecipeError(f"{setting!r}: options are set one by one, options.key=value")
            changes[key] = parsed(field, text)
        return self.replace(**changes)

    def to_json(self) -> str:
        """Write all fields as JSON, in a fixed order; those of `LATER` only where they are not at their defaults."""
        fields = {**dataclasses.asdict(self), "options": self.network_options}
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in LATER}
        kept = {name: value for name, value in fields.items() if defaults.get(name, ...) != value}
        return json.dumps(kept, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote.

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
        """Return a line "field: own, other" for each field in which two recipes differ."""
        lines = []
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if a != b:
                lines.append(f"{field.name}: {_shown(a)}, {_shown(b)}")
        return lines

    def total_steps(self, per_epoch: int) -> int:
        """Return the length in steps."""
        return self.steps if self.steps is not None else (self.epochs or 0) * per_epoch

    def rate(self, step: int, per_epoch: int) -> float:
        """Return the learning rate of a step, 0 the first.

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


def build_network(recipe: Recipe) -> nn.Module:
    """Build the network of a recipe with the initial weights that its seed decides, on the CPU, in float32.

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
