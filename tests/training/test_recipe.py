"""Recipes: strict, written and read without loss, and one for every experiment of the ledger."""

import json

import pytest
import torch

from resid.data.loading import load_dataset
from resid.training.feeds import open_source, reduced, spread
from resid.training.ranks import Ranks
from resid.training.recipe import NETWORKS, Recipe, RecipeError, build_network
from resid.training.recipes import RECIPES

BASE = Recipe(dataset="digits", network="allconv", options={"blocks": 1, "widths": [4, 4, 8, 8]}, epochs=2)


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip(name):
    recipe = RECIPES[name]
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.hash == recipe.hash
    assert hash(again) == hash(recipe)
    assert recipe.differences(again) == []
    with torch.device("meta"):
        build_network(recipe)


def test_recipes_are_all_different():
    assert len({recipe.hash for recipe in RECIPES.values()}) == len(RECIPES)
    assert BASE.hash == "cb9693f94a0b8623", "a run that was begun before would be refused now: say so in the changelog"
    assert "size" not in json.loads(BASE.to_json())
    checked = BASE.replace(check_training=8)
    assert json.loads(checked.to_json())["check_training"] == 8
    assert checked.hash != BASE.hash
    assert checked.differences(BASE) == ["check_training: 8, 0"]


def test_printed_numbers():
    ma = RECIPES["hardt-ma-cifar100"]
    assert (ma.steps, ma.batch, ma.momentum, ma.weight_decay, ma.decay) == (60_000, 128, 0.9, 1e-4, "convolutions")
    assert [ma.rate(step, 391) for step in (0, 29_999)] == [0.05, 0.05]
    assert [ma.rate(step, 391) for step in (30_000, 49_999, 50_000)] == pytest.approx([0.005, 0.005, 0.0005])
    proc = RECIPES["zaeemzadeh-erased-proc1003-cifar100"]
    assert (proc.network_options, proc.projection_probability) == ({"depth": 1003, "erase_relu": True}, 0.5)
    assert [proc.rate(391 * e, 391) for e in (149, 150, 225)] == pytest.approx([0.1, 0.01, 0.001])
    assert RECIPES["zaeemzadeh-resnet164-cifar10"].projection_probability is None
    li = RECIPES["li-figure-9-110-6"]
    assert (li.nesterov, li.total_steps(391), li.network_options) == (True, 164 * 391, {"depth": 110, "length": 6})
    assert [li.rate(391 * e, 391) for e in (80, 81, 122)] == pytest.approx([0.1, 0.01, 0.001])
    assert RECIPES["zaeemzadeh-constant-plain83"].probe_epochs == tuple(range(100))
    first = RECIPES["zaeemzadeh-first-plain83"]
    assert (first.epochs, first.probe_epochs) == (5, tuple(range(5)))
    fields = [line.split(":")[0] for line in first.differences(RECIPES["zaeemzadeh-constant-plain83"])]
    assert sorted(fields) == ["channels_last", "epochs", "probe_epochs"]


def test_printed_numbers_of_imagenet():
    recipe, per_epoch = RECIPES["imagenet-paper"], -(-1_281_167 // 256)
    assert (recipe.steps, recipe.batch, recipe.momentum, recipe.nesterov) == (700_000, 256, 0.9, False)
    assert (recipe.dataset, recipe.size, recipe.class_count, recipe.check_training) == ("imagenet", 224, 1000, 50_000)
    assert [recipe.rate(e * per_epoch, per_epoch) for e in (0, 2, 5, 139)] == pytest.approx(
        [0.1, 0.1 * 0.94, 0.1 * 0.94**2, 0.1 * 0.94**69]
    )
    assert recipe.rate(2 * per_epoch - 1, per_epoch) == 0.1
    joined = RECIPES["imagenet-paper-1536"]
    assert joined.steps * joined.batch == pytest.approx(700_000 * 256, rel=1e-5)
    assert joined.rate(50 * 835, 835) == pytest.approx(6 * recipe.rate(50 * per_epoch, per_epoch))
    convolutions = {}
    for name in ("imagenet-paper", "imagenet-paper-wide", "imagenet-allconv18"):
        with torch.device("meta"):
            net = build_network(RECIPES[name])
        convolutions[name] = sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
        assert net.head.shape[0] == 1000
        assert not net.head.requires_grad
    assert convolutions == {"imagenet-paper": 33, "imagenet-paper-wide": 33, "imagenet-allconv18": 17}
    modern = RECIPES["imagenet-modern"]
    assert modern.options == recipe.options
    assert (modern.epochs, modern.precision, modern.schedule) == (90, "bf16", "linear")


def test_a_reduced_data_set():
    small = BASE.replace(dataset="digits", pool=2, train_images=100, test_images=10)
    assert small.image_shape == (1, 4, 4)
    source = open_source(small, Ranks(0, 1, torch.device("cpu")))
    (batch,) = source.testing.plain()
    assert batch.images.shape == (10, 1, 4, 4)
    assert sum(len(b.labels) for b in source.training.epoch(0)) == 100
    whole = load_dataset("digits").images
    one = reduced(load_dataset("digits"), 100, 2)
    by_hand = whole[0, 0, :2, :2].double().mean().round()
    assert one.images[0, 0, 0, 0] == by_hand
    assert torch.equal(one.labels, load_dataset("digits").labels[spread(1433, 100)])


def test_schedules():
    falling = BASE.replace(schedule="exponential", factor=0.94, decay_every=2, epochs=10)
    assert [falling.rate(e * 7, 7) for e in (0, 1, 2, 5)] == pytest.approx([0.1, 0.1, 0.094, 0.1 * 0.94**2])
    linear = BASE.replace(schedule="linear", warmup=2, epochs=10)
    rates = [linear.rate(step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([0.1 * (i + 1) / 8 for i in range(8)])
    assert rates[8] == pytest.approx(0.1)
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] == pytest.approx(0.1 * 0.25 / 8)
    assert Recipe(steps=5, schedule="steps", milestones=(3,)).rate(3, 100) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "0.1"}, "lr = '0.1': float is needed, not str"),
        ({"lr": float("nan")}, "lr = nan: at least 0"),
        ({"epochs": 2.0}, "epochs = 2.0: int is needed"),
        ({"epochs": True}, "epochs = True: int is needed, not bool"),
        ({"flip": 1}, "flip = 1: bool"),
        ({"steps": 5}, "epochs, steps: exactly one"),
        ({"epochs": None}, "epochs, steps: exactly one"),
        ({"batch": 0}, "batch = 0: at least 1"),
        ({"pool": 0}, "pool = 0: at least 1"),
        ({"pool": 3}, "pool = 3: a divisor of the image's sides is needed"),
        ({"train_images": -1}, "train_images = -1: at least 0"),
        ({"momentum": 1.5}, "momentum = 1.5: at least 0 and at most 1"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov = True"),
        ({"dataset": "svhn"}, "dataset = 'svhn': one of digits"),
        ({"network": "vgg"}, "network = 'vgg'"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"schedule": "steps"}, "milestones go with"),
        ({"milestones": (1,)}, "milestones go with"),
        ({"schedule": "steps", "milestones": (2, 2)}, r"milestones = \(2, 2\)"),
        ({"schedule": "steps", "milestones": (2.5,)}, r"milestones = \(2.5,\): a list of integers"),
        ({"schedule": "exponential"}, "decay_every goes with"),
        ({"probe_epochs": (1, 0)}, "probe_epochs"),
        ({"warmup": 2}, "warmup = 2: less than the length"),
        ({"projection_every": 1}, "only 'proc' has layers to project"),
        ({"projection_probability": 0.0}, "projection_probability = 0"),
        ({"options": {"depth": 20}}, r"options \['depth'\]: 'allconv' has batch_norm, blocks"),
        ({"options": {"classes": 20}}, r"options \['classes'\]"),
        ({"options": {"blocks": None}}, r"options\['blocks'\] = None"),
        ({"options": 3}, "options = 3: a dictionary"),
        ({"classes": 3}, "classes goes with dataset 'images', and only with it"),
        ({"dataset": "images", "size": 32, "pad": 0}, "classes goes with dataset 'images'"),
        ({"dataset": "imagenet", "size": 32, "pad": 0, "classes": 3}, "classes goes with"),
        ({"size": 32}, "size goes with dataset 'imagenet' or 'images'"),
        ({"dataset": "imagenet", "pad": 0}, "size goes with"),
        ({"dataset": "imagenet", "size": 32}, "dataset = 'imagenet': pad = 0 and fill = 'zeros' are needed"),
        ({"dataset": "imagenet", "size": 4, "pad": 0}, "size = 4: at least 8"),
        ({"check_training": -1}, "check_training = -1"),
        ({"learning_rate": 1.0}, "no field 'learning_rate'"),
        ({"momentun": 1.0}, "is 'momentum' meant"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        BASE.replace(**changes)


def test_both_kinds_of_projection_at_once():
    with pytest.raises(RecipeError, match="only one of them"):
        Recipe(network="proc", epochs=1, projection_every=1, projection_probability=0.5)


def test_settings_from_the_command_line():
    found = BASE.with_settings(
        ["lr=1e-2", "epochs=none", "steps=7", "flip=false", "schedule=steps", "milestones=2,5", "options.init=standard",
         "options.widths=[2, 2, 2, 2]", "precision=bf16", "probe_epochs="]
    )  # fmt: skip
    assert found.differences(BASE) == [
        "options: {'blocks': 1, 'init': 'standard', 'widths': (2, 2, 2, 2)}, {'blocks': 1, 'widths': (4, 4, 8, 8)}",
        "epochs: None, 2", "steps: 7, None", "lr: 0.01, 0.1", "schedule: 'steps', 'constant'", "milestones: (2, 5), ()",
        "flip: False, True", "precision: 'bf16', 'fp32'",
    ]  # fmt: skip
    for setting, message in (
        ("lr=fast", "lr=fast: float is needed"),
        ("flip=1", "flip=1: bool is needed"),
        ("epochs=1.5", "epochs=1.5: int is needed"),
        ("milestones=a", "is needed"),
        ("lr", "key=value is needed"),
        ("rate=1", "no field 'rate'"),
        ("options={}", "one by one"),
        ("options.deep=2", r"options \['deep'\]"),
        ("seed=none", "seed=none: int"),
    ):
        with pytest.raises(RecipeError, match=message):
            BASE.with_settings([setting])


def test_bad_json_is_named():
    for text, message in (("{", "JSON is needed"), ("[1]", "not list"), ('{"depth": 3}', "no field 'depth'")):
        with pytest.raises(RecipeError, match=message):
            Recipe.from_json(text)
    content = json.loads(BASE.to_json()) | {"epochs": "2"}
    with pytest.raises(RecipeError, match="epochs = '2'"):
        Recipe.from_json(json.dumps(content))


def test_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first = build_network(BASE).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = build_network(BASE).state_dict(), build_network(BASE.replace(seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_networks_fit_the_data_set():
    for network in NETWORKS:
        recipe = Recipe(dataset="cifar100", network=network, epochs=1)
        with torch.device("meta"):
            assert build_network(recipe)(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
