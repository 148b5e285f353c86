"""One door for all data sets: what each name gives, and what an unknown one is told."""

import pytest
import torch
from sklearn.datasets import load_digits

import resid
from resid.book.experiments.sample_images import write_sample_tree
from resid.data import data_folder, load_dataset, load_whitened
from resid.data.loading import SPLITS
from resid.errors import OptionError


def test_digits_are_the_published_ones_split_once_and_for_all():
    train, test, whole = (load_dataset("digits", split) for split in ("train", "test", "all"))
    assert (train.images.shape, train.images.dtype, train.labels.dtype) == ((1433, 1, 8, 8), torch.uint8, torch.int64)
    published = load_digits()
    assert torch.equal(whole.images[:, 0], torch.from_numpy(published.images).to(torch.uint8))
    assert torch.equal(whole.labels, torch.from_numpy(published.target))
    assert int(whole.images.max()) == 16
    seen, rows = [0] * 10, {"train": [], "test": []}
    for image, label in zip(whole.images, whole.labels.tolist(), strict=True):
        rows["test" if seen[label] % 5 == 0 else "train"].append(image)  # the first of a class, the sixth ...
        seen[label] += 1
    assert torch.equal(train.images, torch.stack(rows["train"]))
    assert torch.equal(test.images, torch.stack(rows["test"]))
    assert int(torch.bincount(test.labels).min()) >= 30
    assert resid.load_dataset is load_dataset


@pytest.mark.parametrize(("name", "n"), [("digits", 1797), ("mnist", 60000)])
def test_whitened_images(name, n):
    data = load_dataset(f"{name}-whitened")
    X, Y = load_whitened(name)
    assert torch.equal(data.images, X)
    assert torch.equal(torch.nn.functional.one_hot(data.labels, 10).to(Y), Y)
    assert data.to("cpu").labels.shape == (n,)


def test_image_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RESID_IMAGENET", str(write_sample_tree(tmp_path, classes=2, per_class=3, val=1)))
    assert [len(load_dataset("imagenet", split)) for split in ("train", "test")] == [6, 2]


@pytest.mark.parametrize(
    ("name", "split"), [("svhn", "train"), ("mnist", "valid"), ("cifar10", "all"), ("mnist-whitened", "test")]
)
def test_unknown_names_and_splits_are_told_all_there_are(name, split):
    with pytest.raises(OptionError, match=f"name = '{name}', split = '{split}': the data sets") as caught:
        load_dataset(name, split)
    for known, splits in SPLITS.items():
        assert f"{known!r}: {', '.join(map(repr, splits))}" in str(caught.value)


def test_the_folder_is_that_of_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("RESID_DATA", str(tmp_path))
    assert data_folder() == tmp_path
