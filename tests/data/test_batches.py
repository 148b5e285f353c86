"""Batches: each sample once, the same for every number of ranks, and crops against slices by hand."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resid.data.batches import (
    Batches,
    crop_and_flip,
    draw_crops,
    draw_order,
    pixel_statistics,
    standardize_images,
)
from resid.data.loading import Dataset, load_dataset
from resid.errors import OptionError, ShapeError

ZERO, ONE = torch.zeros(1), torch.ones(1)


def numbered(n, size=4):
    """Images whose first pixel is their number."""
    images = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n)
    return Dataset(images, torch.arange(n), "numbered")


def make(n=23, batch=5, rank=0, ranks=1, **more):
    return Batches(numbered(n), batch, 0, "dataset", ZERO, ONE, rank=rank, ranks=ranks, **more)


GOLDEN = [
    ("dataset", 2, "zeros", True, 0, 1, "74d3c528306a2516", "55ed8acfaef428df", "fb9417ab92d9328e"),
    ("dataset", 2, "zeros", True, 0, 2, "f3c049c77c72b69e", "cb9e9ba36c7355ac", "8fae0c845d875dd2"),
    ("dataset", 2, "zeros", True, 1, 2, "d8ced66a7fbc77a6", "5caee6864f95484e", "3421490935f7163f"),
    ("dataset", 1, "reflect", True, 1, 2, "283fefaef190a0a4", "e9acf46bdff4fd30", "3421490935f7163f"),
    ("image", 2, "zeros", False, 0, 1, "8c6b3898fd32c0c4", "e85a7011c4a80c75", "015ee7a8bc71ba5a"),
    ("image", 2, "zeros", False, 1, 2, "fa8c0cd0b05cc77f", "b6c784c61df5cbc5", "75abf07b2d7042f7"),
]


def checksum(batches):
    digest = hashlib.sha256()
    for images, labels, size in batches:
        digest.update(images.numpy().tobytes() + labels.numpy().tobytes() + str(size).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(("normalize", "pad", "fill", "flip", "rank", "ranks", *("epoch", "part", "plain")), GOLDEN)
def test_batches_are_those_of_the_recorded_runs(normalize, pad, fill, flip, rank, ranks, epoch, part, plain):
    """Runs that were recorded with these bits are to be repeated with the same ones."""
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    look, share = (normalize, *pixel_statistics(train.images)), {"rank": rank, "ranks": ranks}
    batches = Batches(train, 320, 5, *look, pad, fill, flip, **share)
    assert (checksum(batches.epoch(1)), checksum(batches.epoch(3, 2, 4))) == (epoch, part)
    assert checksum(Batches(test, 100, 5, *look, **share).plain()) == plain


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("n", "batch"), [(23, 5), (20, 5), (7, 7), (9, 100)])
def test_an_epoch_has_each_sample_once(n, batch, ranks):
    parts = [list(make(n, batch, rank, ranks).epoch(3)) for rank in range(ranks)]
    alone = list(make(n, batch).epoch(3))
    assert {len(part) for part in parts} == {len(alone)} == {-(-n // batch)}
    for i, whole in enumerate(alone):
        together = torch.cat([part[i].labels for part in parts])
        assert sorted(together.tolist()) == sorted(whole.labels.tolist())
        assert {part[i].size for part in parts} == {len(whole.labels)} == {len(together)}
        for part in parts:
            assert part[i].images[:, 0, 0, 0].tolist() == part[i].labels.tolist()
    assert sorted(torch.cat([b.labels for b in alone]).tolist()) == list(range(n))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_test_images_once(ranks):
    seen = [b for rank in range(ranks) for b in make(23, 5, rank, ranks).plain()]
    assert sorted(torch.cat([b.labels for b in seen]).tolist()) == list(range(23))
    assert sum(b.size for b in seen) == 23


def test_a_sample_is_cropped_alike_on_every_rank_and_after_a_resume():
    split = load_dataset("digits")
    look = ("dataset", *pixel_statistics(split.images))
    options = {"pad": 2, "flip": True}

    def seen(epoch, first=0, rank=0, ranks=1):
        batches = Batches(split, 100, 5, *look, rank=rank, ranks=ranks, **options)
        return {
            int(label_key): image
            for i, batch in enumerate(batches.epoch(epoch, first), first)
            for label_key, image in zip(
                draw_order(1433, 5, epoch)[i * 100 : (i + 1) * 100][rank::ranks], batch.images, strict=True
            )
        }

    alone = seen(1)
    assert len(alone) == 1433
    for other in (seen(1, rank=0, ranks=3), seen(1, rank=2, ranks=3), seen(1, first=9)):
        assert 0 < len(other) < 1433
        assert all(torch.equal(image, alone[k]) for k, image in other.items())
    following = seen(2)
    assert sum(torch.equal(following[k], alone[k]) for k in alone) < 200


def test_draws_depend_on_seed_and_epoch_alone_and_are_uniform():
    assert torch.equal(draw_order(50, 1, 2), draw_order(50, 1, 2))
    assert not torch.equal(draw_order(50, 1, 2), draw_order(50, 2, 1))
    assert not torch.equal(draw_order(50, 1, 2), draw_order(50, 1, 3))
    crops = draw_crops(20_000, 0, 0, 2, True)
    for column, values in ((0, 5), (1, 5), (2, 2)):
        share = torch.bincount(crops[:, column], minlength=values) / len(crops)
        assert len(share) == values
        assert float((share - 1 / values).abs().max()) < 0.015  # five standard deviations
    assert abs(float(torch.corrcoef(crops.T.double())[0, 1])) < 0.04
    assert int(draw_crops(100, 0, 0, 2, False)[:, 2].max()) == 0


@given(
    st.integers(0, 3), st.sampled_from(["zeros", "reflect"]), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99)
)
def test_crops_are_slices_of_the_padded_image(pad, fill, extra_h, extra_w, seed):
    h, w = pad + extra_h, pad + extra_w
    images = torch.randn(3, 2, h, w, generator=torch.Generator().manual_seed(seed))
    crops = draw_crops(3, seed, 0, pad, True)
    found = crop_and_flip(images, crops, pad, fill)
    for image, (row, column, flipped), got in zip(images.numpy(), crops.tolist(), found.numpy(), strict=True):
        wide = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="constant" if fill == "zeros" else "reflect")
        cut = wide[:, row : row + h, column : column + w]
        np.testing.assert_array_equal(got, cut[:, :, ::-1] if flipped else cut)


def test_statistics_are_exact_and_those_of_the_training_images():
    images = torch.randint(0, 256, (40, 3, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 1] = 250 + images[:, 1] % 2
    images[:, 2] = 9
    mean, std = pixel_statistics(images)
    exact = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, exact.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(std[:2], exact[:2].std(1, correction=0), rtol=1e-12, atol=0)
    assert std[2] == 1
    batches = Batches(Dataset(images, torch.zeros(40, dtype=torch.int64), ""), 7, 0, "dataset", mean, std)
    whole = torch.cat([batch.images for batch in batches.epoch(0)]).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(whole.mean(1), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole[:2].std(1, correction=0), torch.ones(2).double(), atol=1e-5, rtol=0)


def test_padding_has_the_mean_colour_or_is_black():
    images = torch.full((4, 1, 6, 6), 100, dtype=torch.uint8)
    images[:, :, ::2] = 50
    split = Dataset(images, torch.zeros(4, dtype=torch.int64), "")
    look = pixel_statistics(images)
    for normalize in ("dataset", "image"):
        batches = Batches(split, 4, 0, normalize, *look, pad=3)
        ((found, _, _),) = batches.epoch(0)
        corner = draw_crops(4, 0, 0, 3, False)[draw_order(4, 0, 0)]
        for image, (row, _, _) in zip(found, corner.tolist(), strict=True):
            if row == 3:
                continue
            edge = image[0, 0 if row < 3 else -1]
            if normalize == "dataset":
                assert float(edge.abs().max()) == 0
            else:
                assert float(edge.max()) == float(image.min()) < -0.5


def test_each_image_standardised():
    images = torch.randint(0, 256, (3, 2, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images[1] = 7
    images[2] = 100
    images[2, 0, 0, 0] = 101
    found = standardize_images(images)
    x = images[0].double()
    torch.testing.assert_close(found[0].double(), (x - x.mean()) / x.std(correction=0), atol=1e-5, rtol=0)
    assert float(found[1].abs().max()) == 0
    # standard deviation sqrt(39)/40 = 0.156 is below 1/sqrt(40) = 0.158
    assert float(found[2, 0, 0, 0]) == pytest.approx((1 - 1 / 40) * 40**0.5, rel=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(OptionError, match=r"batch = 5, 21 samples: a batch of 1 cannot be shared by 2 ranks"):
        make(21, 5, ranks=2)
    with pytest.raises(OptionError, match="batch = 0"):
        make(batch=0)
    with pytest.raises(OptionError, match="fill = 'edge'"):
        make(fill="edge")
    with pytest.raises(OptionError, match="pad = 4"):
        make(pad=4, fill="reflect")
    with pytest.raises(ShapeError, match=r"torch.float32 of shape \(1, 2, 3\)"):
        pixel_statistics(torch.zeros(1, 2, 3))
