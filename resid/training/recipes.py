"""Recipes by name: one for every trained network of the papers' tables and figures, and small ones on digits.

Where a paper leaves something open, the choice is that of its released code or of the code it builds on:

- Hardt & Ma 2016: "hardt-ma-cifar10" and "-cifar100", with variants "-standard" (initial weights of standard
  deviation 1/(k sqrt(c))), "-trained-head" and "-batch-norm". 60,000 steps of batch 128; rate 0.05, a tenth of it from
  steps 30,000 and 50,000; decay of the convolutions alone; crops from 36 x 36, mirror, each image standardised.
  "-modern" differs in ways of which the paper knows nothing: a larger batch, a linear schedule with warm-up, label
  smoothing, bf16. "-bf16" is the paper's run in that precision.
- Zaeemzadeh et al. 2018: "zaeemzadeh-NETWORK-CLASSES" with NETWORK such as resnet164, erased164, proc166 or
  erased-proc166: 300 epochs, rate 0.1, a tenth of it from epochs 150 and 225, projection with probability 1/2 after
  each step. "zaeemzadeh-constant-NETWORK" is for Figures 3 and 4 and Table 1: 100 epochs at rate 0.1 with probes in
  all of them; "zaeemzadeh-start-NETWORK" is its first step, for what is claimed of initial weights, and
  "zaeemzadeh-first-NETWORK" its first five epochs. "-released" projects as the released code does, with its slip.
- Li et al. 2016: "li-figure-2-DEPTH" and "li-figure-9-DEPTH-LENGTH": Nesterov, rate 0.1, a tenth of it from epochs 81
  and 122 of 164 (Figure 2: of 200). "li-zero-DEPTH-LENGTH-RATE", which the paper does not have, has no batch
  norm and starts with the last convolution of every branch at zero; 30 epochs at a constant rate. "li-small-..." starts
  with all weights of the branches at a tenth of the usual ones.
- "reduced-...": the same networks at a scale that two CPU cores manage, see `REDUCED`.
- Hardt & Ma 2016, ImageNet: "imagenet-paper", a network with the layout of the 34-layer residual network. Six machines
  updated one set of weights, each with batches of 256 and without waiting for the others; here each of their 700,000
  updates is a step of batch 256, one after the other, and "every two epochs" is counted in these steps.
  "imagenet-paper-1536" joins the six batches in one step with six times the rate, a sixth of the steps and a warm-up,
  for more cards; "imagenet-paper-wide" has the widths of a network with the paper's 35.7 million parameters (see
  `resid.book.experiments.imagenet_layouts`). "imagenet-modern" and "imagenet-allconv18" are trained as one would
  today, for 90 epochs; "images-allconv" is a small network for a folder of ten classes.
- "digits-...": the same networks, small, on the 8 x 8 digits; seconds each on two CPU cores.

Seeds are set with `Recipe.replace(seed=...)`.
"""

from __future__ import annotations

from typing import Any

from resid.training.recipe import Recipe

__all__ = ["IMAGENET_IMAGES", "IMAGENET_WIDTHS", "RECIPES", "WIDE_WIDTHS"]

#: Training images of ILSVRC 2012.
IMAGENET_IMAGES = 1_281_167
#: Channels of the stem and the stages: those of the 34-layer residual network, and those nearest to them that make 35.7
#: million parameters, see `resid.book.experiments.imagenet_layouts`.
IMAGENET_WIDTHS, WIDE_WIDTHS = (64, 64, 128, 256, 512), (64, 64, 192, 256, 736)
#: Learning rates without batch norm, of which the best one counts.
ZERO_RATES = (0.1, 0.03, 0.01)
#: CIFAR-10 as it is used at reduced scale: 16 x 16 pixels, a twelfth of the training images.
REDUCED: dict[str, Any] = {"pool": 2, "train_images": 4096, "test_images": 1000}


def _hardt_ma() -> dict[str, Recipe]:
    printed = Recipe(
        network="allconv", steps=60_000, lr=0.05, schedule="steps", milestones=(30_000, 50_000), decay="convolutions",
        normalize="image", pad=2, probe_epochs=(0, 38, 76, 114, 153),
    )  # fmt: skip
    small = Recipe(
        dataset="digits", network="allconv", epochs=12, batch=32, lr=0.05, schedule="steps", milestones=(8, 10),
        decay="convolutions", normalize="image", pad=1, flip=False, probe_epochs=(0, 11),
    )  # fmt: skip
    found = {}
    variants: dict[str, dict[str, Any]] = {
        "": {}, "-standard": {"init": "standard"}, "-trained-head": {"fixed_head": False},
        "-batch-norm": {"batch_norm": True},
    }  # fmt: skip
    for suffix, options in variants.items():
        for dataset in ("cifar10", "cifar100"):
            found[f"hardt-ma-{dataset}{suffix}"] = printed.replace(dataset=dataset, options=options)
        narrow = {"blocks": 2, "widths": (8, 16, 32, 64), **options}
        found[f"digits-allconv{suffix}"] = small.replace(options=narrow)
    found["hardt-ma-cifar10-bf16"] = printed.replace(precision="bf16")
    found["digits-allconv-bf16"] = found["digits-allconv"].replace(precision="bf16", channels_last=True)
    today: dict[str, Any] = {
        "nesterov": True, "schedule": "linear", "milestones": (), "label_smoothing": 0.1, "normalize": "dataset",
        "precision": "bf16", "channels_last": True, "probe_epochs": (),
    }  # fmt: skip
    for dataset in ("cifar10", "cifar100"):
        found[f"hardt-ma-{dataset}-modern"] = printed.replace(
            dataset=dataset, steps=None, epochs=60, batch=512, lr=0.2, warmup=5, pad=4, fill="reflect",
            compile="default", **today,
        )  # fmt: skip
    found["digits-allconv-modern"] = found["digits-allconv"].replace(batch=64, lr=0.1, warmup=2, **today)
    return found


def _networks(depths: tuple[int, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Names of the networks of Zaeemzadeh et al., each with its constructor and options."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for depth in depths:
        found[f"resnet{depth}"] = ("preact", {"depth": depth})
        found[f"erased{depth}"] = ("preact", {"depth": depth, "erase_relu": True})
        found[f"proc{depth + 2}"] = ("proc", {"depth": depth + 2})
        found[f"erased-proc{depth + 2}"] = ("proc", {"depth": depth + 2, "erase_relu": True})
        found[f"plain{depth}"] = ("plain", {"depth": depth})
    return found


def _zaeemzadeh() -> dict[str, Recipe]:
    released = Recipe(epochs=300, schedule="steps", milestones=(150, 225))
    half: dict[str, Any] = {"projection_probability": 0.5}
    found = {}
    for name, (network, options) in _networks((164, 272, 1001)).items():
        if network == "plain":
            continue
        for dataset in ("cifar10", "cifar100"):
            more = half if network == "proc" else {}
            recipe = released.replace(dataset=dataset, network=network, options=options, **more)
            found[f"zaeemzadeh-{name}-{dataset}"] = recipe
    proc = found["zaeemzadeh-proc166-cifar10"].replace(projection_probability=None)
    found["zaeemzadeh-proc166-cifar10-every1"] = proc.replace(projection_every=1)
    found["zaeemzadeh-proc166-cifar10-every2"] = proc.replace(projection_every=2)
    found["zaeemzadeh-proc166-cifar100-unprojected"] = proc.replace(dataset="cifar100")
    found["zaeemzadeh-proc166-cifar100-released"] = found["zaeemzadeh-proc166-cifar100"].replace(projection="released")
    for name, (network, options) in _networks((20, 83, 164)).items():
        if "erased" not in name:
            more = half if network == "proc" else {}
            found[f"zaeemzadeh-constant-{name}"] = Recipe(
                network=network, options=options, epochs=100, probe_epochs=tuple(range(100)), **more
            )
    for name in ("resnet20", "resnet164"):
        start = found[f"zaeemzadeh-constant-{name}"]
        found[f"zaeemzadeh-start-{name}"] = start.replace(epochs=None, steps=1, probe_epochs=(0,), channels_last=True)
    begun = found["zaeemzadeh-constant-plain83"]
    found["zaeemzadeh-first-plain83"] = begun.replace(epochs=5, probe_epochs=tuple(range(5)), channels_last=True)
    for name, (network, options) in _networks((20, 56, 164)).items():
        more = half if network == "proc" else {}
        found[f"digits-{name}"] = Recipe(
            dataset="digits", network=network, options={**options, "width": 4}, epochs=3, batch=64, pad=1, flip=False,
            probe_epochs=(0, 1, 2), **more,
        )  # fmt: skip
    found["digits-proc22-unprojected"] = found["digits-proc22"].replace(projection_probability=None)
    found["digits-proc22-released"] = found["digits-proc22"].replace(projection="released")
    found["digits-proc22-every1"] = found["digits-proc22-unprojected"].replace(projection_every=1)
    found["digits-proc22-every2"] = found["digits-proc22-unprojected"].replace(projection_every=2)
    return found


def _li() -> dict[str, Recipe]:
    base = Recipe(network="shortcut_depth", epochs=164, nesterov=True, schedule="steps", milestones=(81, 122))
    found = {}
    for depth in (20, 56, 110):
        found[f"li-figure-2-{depth}"] = base.replace(
            options={"depth": depth, "length": 2}, epochs=200, probe_epochs=(0, 40, 80, 120, 160, 199)
        )
    for depth in (38, 74, 110):
        for length in (1, 2, 3, 4, 6):
            options = {"depth": depth, "length": length}
            found[f"li-figure-9-{depth}-{length}"] = base.replace(options=options)
    small = base.replace(dataset="digits", epochs=3, milestones=(2,), batch=64, pad=1, flip=False, probe_epochs=(0, 2))
    for depth, lengths in ((20, (2,)), (38, (1, 2, 3, 4, 6)), (74, (1, 2, 3, 4, 6))):
        for length in lengths:
            options = {"depth": depth, "length": length, "width": 4}
            found[f"digits-shortcut-{depth}-{length}"] = small.replace(options=options)
    constant: dict[str, Any] = {"schedule": "constant", "milestones": ()}
    for length in (1, 2, 3, 4):
        options = {"depth": 110, "length": length, "batch_norm": False}
        for rate in ZERO_RATES:
            found[f"li-zero-110-{length}-{rate}"] = base.replace(options=options, epochs=30, lr=rate, **constant)
            small_start = {**options, "branch_scale": 0.1}
            found[f"li-small-110-{length}-{rate}"] = base.replace(options=small_start, epochs=30, lr=rate, **constant)
            narrow = {**options, "depth": 38, "width": 8}
            for name, more in (("zero", {}), ("small", {"branch_scale": 0.1})):
                found[f"reduced-{name}-38-{length}-{rate}"] = base.replace(
                    options={**narrow, **more}, epochs=4, lr=rate, pad=2, channels_last=True, **REDUCED, **constant
                )
        options = {"depth": 38, "length": length, "batch_norm": False, "width": 4}
        found[f"digits-zero-38-{length}"] = small.replace(options=options, epochs=5, lr=ZERO_RATES[1], **constant)
        small_start = {**options, "branch_scale": 0.1}
        found[f"digits-small-38-{length}"] = small.replace(options=small_start, lr=ZERO_RATES[0], **constant)
    return found


def _imagenet() -> dict[str, Recipe]:
    layout: dict[str, Any] = {"blocks": (3, 4, 6, 3), "widths": IMAGENET_WIDTHS, "stem": (7, 2), "strides": (2,) * 4}
    two_epochs = 2 * -(-IMAGENET_IMAGES // 256)
    printed = Recipe(
        dataset="imagenet", size=224, network="allconv", options=layout, steps=700_000, batch=256, lr=0.1,
        schedule="exponential", factor=0.94, decay_every=two_epochs, decay="convolutions", pad=0,
        check_training=50_000,
    )  # fmt: skip
    joined = printed.replace(
        steps=-(-700_000 // 6), batch=6 * 256, lr=0.6, decay_every=2 * -(-IMAGENET_IMAGES // 1536), warmup=5 * 835,
    )  # fmt: skip
    modern = printed.replace(
        steps=None, epochs=90, batch=1024, lr=0.4, nesterov=True, schedule="linear", decay_every=0, factor=0.1,
        warmup=5, label_smoothing=0.1, precision="bf16", channels_last=True, compile="default",
    )  # fmt: skip
    small: dict[str, Any] = {"blocks": 1, "widths": (16, 16, 32, 64), "stem": (5, 2), "strides": (2, 2, 2)}
    folder = Recipe(
        dataset="images", classes=10, size=48, network="allconv", options=small, epochs=6, batch=32, lr=0.02,
        schedule="exponential", factor=0.94, decay_every=2, decay="convolutions", pad=0, check_training=100,
    )  # fmt: skip
    return {
        "imagenet-paper": printed,
        "imagenet-paper-1536": joined,
        "imagenet-paper-wide": printed.replace(options={**layout, "widths": WIDE_WIDTHS}),
        "imagenet-modern": modern,
        "imagenet-allconv18": modern.replace(options={**layout, "blocks": (2, 2, 2, 2)}),
        "images-allconv": folder,
    }


RECIPES: dict[str, Recipe] = {**_hardt_ma(), **_zaeemzadeh(), **_li(), **_imagenet()}
