"""The embedded data and what is made of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from resid.data.whitened import image_pairs, load_whitened, mirrored, rotated, shifted, unit_digits, whitening
from resid.errors import DepthError, NotFiniteError, OptionError, ShapeError
from resid.theory.targets import random_rotation
from tools import embed_mnist


def test_transformations_do_what_they_say():
    image = torch.zeros(1, 5, 5, dtype=torch.float64)
    image[0, 1, 3] = 1  # above the centre, to the right
    assert mirrored(image)[0].nonzero().tolist() == [[1, 1]]
    assert shifted(image, rows=1)[0].nonzero().tolist() == [[2, 3]]
    assert shifted(image, columns=-1)[0].nonzero().tolist() == [[1, 2]]
    turned = rotated(image, 90)[0].round(decimals=6)
    assert turned.nonzero().tolist() == [[1, 1]]  # counter-clockwise
    torch.testing.assert_close(rotated(image, 0), image)
    torch.testing.assert_close(mirrored(mirrored(image)), image)
    for change in (lambda x: rotated(x, 10), shifted, mirrored):
        with pytest.raises(ShapeError, match=r"\(n, height, width\)"):
            change(image[0])


def test_whitening_has_unit_moments_and_fixed_signs():
    images = unit_digits()[0]
    found = whitening(images, 10)
    coordinates = found.encode(images)
    torch.testing.assert_close(coordinates.mean(0), torch.zeros(10, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(coordinates.mT @ coordinates / 1797, torch.eye(10, dtype=torch.float64))
    assert bool((found.components.gather(1, found.components.abs().argmax(1, keepdim=True)) > 0).all())
    assert bool((found.scale[:-1] >= found.scale[1:]).all())
    # a data set with every sign reversed has the same components
    torch.testing.assert_close(whitening(-images, 10).components, found.components, atol=1e-9, rtol=0)


@pytest.mark.parametrize("components", [0, 62, 2.0, True])
def test_whitening_refuses_what_the_data_cannot_give(components):
    with pytest.raises(ShapeError, match="an integer from 1 to 61, the rank of the data"):
        whitening(unit_digits()[0], components)
    with pytest.raises(NotFiniteError):
        whitening(torch.full((3, 2), torch.nan), 1)


def test_image_pairs_are_whitened_inputs_and_transformed_images():
    X, Y = image_pairs(lambda images: images, components=5)
    torch.testing.assert_close(X, Y)
    torch.testing.assert_close(X.mT @ X / len(X), torch.eye(5, dtype=torch.float64))
    X, Y = image_pairs(mirrored, components=5)
    assert not torch.allclose(X, Y)


def test_data_helpers_take_numpy_and_name_what_is_wrong():
    images = unit_digits()[0][:3]
    torch.testing.assert_close(rotated(images.numpy(), degrees=20), rotated(images, degrees=20))
    torch.testing.assert_close(mirrored(images.clone().requires_grad_()), mirrored(images))
    for bad in (torch.zeros(4), torch.zeros(0, 3)):
        with pytest.raises(ShapeError, match="one more axis is needed"):
            whitening(bad, 1)
    with pytest.raises(DepthError, match="d = 0"):
        random_rotation(0, torch.Generator())


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_whitened_data_have_unit_moments_and_one_hot_labels(name):
    X, Y = load_whitened(name)
    assert X.shape == Y.shape == ({"mnist": 60000, "digits": 1797}[name], 10)
    torch.testing.assert_close(X.mT @ X / len(X), torch.eye(10, dtype=X.dtype), atol=1e-6, rtol=0)
    assert float(X.mean(0).abs().max()) < 1e-6
    assert bool((Y.sum(1) == 1).all())
    assert set(Y.unique().tolist()) == {0.0, 1.0}
    turned, _ = load_whitened(name, signs=[-1] + [1] * 9)
    torch.testing.assert_close(turned[:, 0], -X[:, 0])
    X[0] = 9  # a copy: the next call is not spoilt
    assert not bool((load_whitened(name)[0][0] == 9).all())
    with pytest.raises(OptionError, match="each \\+1 or -1"):
        load_whitened(name, signs=[1] * 9)
    with pytest.raises(OptionError, match="name = 'svhn'"):
        load_whitened("svhn")


def test_mnist_has_the_official_class_counts():
    counts = load_whitened("mnist")[1].sum(0).to(torch.int64).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.skipif("RESID_DATA" not in os.environ, reason="the official MNIST files are not here: set RESID_DATA")
def test_embedded_mnist_is_rebuilt_bit_for_bit():
    images, labels = embed_mnist.read_official(Path(os.environ["RESID_DATA"]))
    with np.load(embed_mnist.TARGET) as stored:
        assert stored["components"].dtype == np.float32
        assert np.array_equal(embed_mnist.whitened(images), stored["components"])
        assert np.array_equal(labels, stored["labels"])
    # another route, a singular value decomposition of the pixels, lands on the same grid points or next to them
    pixels = torch.from_numpy(images.astype(np.float64))
    found = whitening(pixels, 10).encode(pixels)
    assert float((found - torch.from_numpy(stored_components())).abs().max()) <= 0.51 / embed_mnist.GRID


def stored_components():
    with np.load(embed_mnist.TARGET) as stored:
        return stored["components"].astype(np.float64)
