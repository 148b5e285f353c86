"""The official files: read right, and refused when they are anything else."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from resid.book.checks.samples.memorize import coincidences
from resid.data import official
from resid.data.official import DataFileError, data_folder, has_official, load_official
from resid.errors import OptionError

needs_data = pytest.mark.skipif(
    "RESID_DATA" not in os.environ, reason="the official files are not here: set RESID_DATA"
)


def place(monkeypatch, root, name, split, contents):
    """Files of our own under the official names, with their MD5 in place of the official one."""
    files = dict(zip(official.FILES[name, split], contents, strict=True))
    for file, content in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(official.FILES, (name, split), sums)


def batch(values, key):
    """As the official batches are: bytes for keys, and NumPy's names of 2009."""
    content = pickle.dumps({b"data": values, key: list(range(len(values)))}, protocol=3)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_mnist_layout(monkeypatch, tmp_path):
    pixels = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8)
    place(monkeypatch, tmp_path, "mnist", "test", [b"h" * 16 + pixels.tobytes(), b"h" * 8 + bytes([7, 2])])
    assert has_official("mnist", "test", tmp_path)
    assert not has_official("mnist", "train", tmp_path)
    data = load_official("mnist", "test", tmp_path)
    assert data.images.shape == (2, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.images[1, 0, 0, :3].tolist() == pixels[784:787].tolist()
    assert data.labels.tolist() == [7, 2]
    assert data.source == "mnist test, official"


@pytest.mark.parametrize(("name", "key", "parts"), [("cifar10", b"labels", 5), ("cifar100", b"fine_labels", 1)])
def test_cifar_layout(monkeypatch, tmp_path, name, key, parts):
    values = [np.random.default_rng(i).integers(0, 256, (3, 3072), dtype=np.uint8) for i in range(parts)]
    place(monkeypatch, tmp_path, name, "train", [batch(v, key) for v in values])
    monkeypatch.setenv("RESID_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    data = load_official(name)
    assert data.images.shape == (3 * parts, 3, 32, 32)
    assert data.labels.tolist() == [0, 1, 2] * parts
    assert data.images[4 % len(data.images), 1, 0, 2] == values[-1 if parts == 1 else 1][1, 1024 + 2]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-exist",)


def test_nothing_else_is_ever_unpickled(monkeypatch, tmp_path):
    place(monkeypatch, tmp_path, "cifar10", "test", [pickle.dumps({b"data": Evil()}, protocol=3)])
    with pytest.raises(DataFileError, match=r"asks for (posix|nt)[.]system"):
        load_official("cifar10", "test", tmp_path)


def test_files_that_are_not_the_official_ones_are_refused(monkeypatch, tmp_path):
    with pytest.raises(DataFileError, match=r"train cannot be read .*RESID_DATA"):
        load_official("cifar100", "train", tmp_path, download=False)
    place(monkeypatch, tmp_path, "cifar10", "test", [batch(np.zeros((2, 3072), np.uint8), b"labels")])
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for wrong in (whole[:-10], whole[:-1] + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(DataFileError, match=rf"test_batch has {len(wrong)} bytes and MD5 .* delete it"):
            load_official("cifar10", "test", tmp_path)
    with pytest.raises(OptionError, match="name = 'svhn'"):
        load_official("svhn")
    with pytest.raises(OptionError, match="split = 'valid'"):
        load_official("mnist", "valid")


def test_folder_without_the_variable(monkeypatch):
    monkeypatch.delenv("RESID_DATA", raising=False)
    assert data_folder() == Path.home() / ".cache" / "resid-book"


@needs_data
@pytest.mark.parametrize(
    ("name", "split", "shape", "mean", "std"),
    [
        ("mnist", "train", (60000, 1, 28, 28), [0.1306604763], [0.3081078039]),
        ("mnist", "test", (10000, 1, 28, 28), [0.1325], [0.3105]),
        ("cifar10", "train", (50000, 3, 32, 32), [0.491400, 0.482158, 0.446531], [0.247032, 0.243485, 0.261588]),
        ("cifar10", "test", (10000, 3, 32, 32), [0.4942, 0.4851, 0.4504], [0.2467, 0.2429, 0.2616]),
        ("cifar100", "train", (50000, 3, 32, 32), [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
        ("cifar100", "test", (10000, 3, 32, 32), [0.5088, 0.4874, 0.4419], [0.2683, 0.2574, 0.2771]),
    ],
)  # fmt: skip
def test_real_data_have_their_published_moments(name, split, shape, mean, std):
    data = load_official(name, split)
    assert data.images.shape == shape
    grey = np.arange(256) / 255
    for channel, wanted in enumerate(zip(mean, std, strict=True)):
        shares = np.bincount(data.images[:, channel].flatten().numpy(), minlength=256) / data.images[:, 0].numel()
        centre = shares @ grey
        assert (centre, (shares @ (grey - centre) ** 2) ** 0.5) == pytest.approx(wanted, abs=6e-5)
    per_class = {"cifar10": shape[0] // 10, "cifar100": shape[0] // 100}.get(name)
    if per_class:
        assert set(data.labels.bincount().tolist()) == {per_class}


@needs_data
def test_cifar100_has_equal_images_with_different_labels():
    data = load_official("cifar100")
    found = coincidences(data.images, data.labels)
    assert (found.pairs, found.conflicting) == (14, 9)
