"""Streams of image files: each sample once, the same bits however one gets there, and nothing lost in silence."""

import os
import signal
import time

import pytest
import torch
from PIL import Image

from resid.book.experiments.sample_images import BROKEN, write_sample_tree
from resid.data.batches import draw_order, pixel_statistics, seed_of
from resid.data.decode import decode_test, decode_train
from resid.data.image_files import open_images
from resid.data.stream import IGNORED, IMAGENET_MEAN, IMAGENET_STD, StreamBatches, TooManyBrokenError
from resid.data.workers import WorkerDiedError, Workers
from resid.errors import InterruptedRunError, OptionError, SizeError

RAW = (torch.zeros(3), torch.ones(3))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """25 images, all of whose pixels are the number of the sample, in two classes."""
    root = tmp_path_factory.mktemp("numbered")
    for i in range(25):
        place = root / "train" / f"n{i // 13:08d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (i, i, i)).save(place / f"{i:02d}.JPEG", "PNG")
    return open_images(root, "train")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("tree"), classes=3, per_class=8, val=2, odd=BROKEN)


@pytest.fixture
def own(tmp_path):
    """Images that a test may delete."""
    return write_sample_tree(tmp_path, classes=3, per_class=8, val=0)


def make(files, batch=7, seed=3, **options):
    return StreamBatches(files, batch, seed, "dataset", *RAW, **{"size": 16, "side": 18, **options})


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.size == b.size
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch", [7, 25, 100])
def test_an_epoch_has_each_sample_once(numbered, batch, ranks):
    parts = [list(make(numbered, batch, rank=rank, ranks=ranks).epoch(2)) for rank in range(ranks)]
    alone = list(make(numbered, batch).epoch(2))
    assert {len(part) for part in parts} == {len(alone)} == {-(-25 // batch)}
    for i, whole in enumerate(alone):
        assert {part[i].size for part in parts} == {len(whole.labels)} == {sum(len(part[i].labels) for part in parts)}
        for rank, part in enumerate(parts):
            assert torch.equal(part[i].images, whole.images[rank::ranks])
            assert torch.equal(part[i].labels, whole.labels[rank::ranks])
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in alone]).long()
    assert seen.tolist() == draw_order(25, 3, 2).tolist()
    assert torch.equal(torch.cat([batch.labels for batch in alone]), numbered.labels[seen])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_test_images_once(numbered, ranks):
    seen = [b for rank in range(ranks) for b in make(numbered, 11, rank=rank, ranks=ranks).plain()]
    assert sorted(int(v) for b in seen for v in b.images[:, 0, 0, 0]) == list(range(25))
    assert sum(b.size for b in seen) == 25


def test_samples_are_cropped_by_seed_epoch_and_number(tree):
    files = open_images(tree, "val")
    for epoch in (0, 5):
        images = torch.cat([batch.images for batch in make(files, 4).epoch(epoch)])
        for image, i in zip(images, draw_order(6, 3, epoch).tolist(), strict=True):
            expected = decode_train(files.read(i), 16, seed_of("window", 3, epoch, i))
            assert torch.equal(image, expected.float())
    plain = torch.cat([batch.images for batch in make(files, 4).plain()])
    assert torch.equal(plain, torch.stack([decode_test(files.read(i), 16, 18) for i in range(6)]).float())
    still = make(files, 6, flip=False, area=(1.0, 1.0), ratio=(1.0, 1.0))
    first, second = (torch.cat([b.images for b in still.epoch(e)])[draw_order(6, 3, e).argsort()] for e in (0, 1))
    assert float((first - second).abs().mean()) < float((first - first.roll(1, 0)).abs().mean()) / 3


def test_the_same_bits_after_a_resume_and_for_any_workers(tree):
    files = open_images(tree, "train")
    state = torch.get_rng_state()
    alone = make(files, 5)
    whole = list(alone.epoch(1))
    assert len(whole) == 6
    assert not same(whole, list(make(files, 5).epoch(2)))
    assert same(list(make(files, 5).epoch(1, 4)), whole[4:])
    assert same(list(make(files, 5).epoch(1, 2, 4)), whole[2:4])
    batches = make(files, 5, workers=2)
    assert same(list(batches.epoch(1)), whole)
    for batch in batches.epoch(0):  # left in its middle, what was prepared is thrown away
        assert len(batch.labels) == 5
        break
    assert same(list(batches.epoch(1, 4)), whole[4:])
    assert same(list(batches.plain()), list(make(files, 5).plain()))
    assert len(batches.pids) == 2
    assert batches.broken == alone.broken
    assert len(alone.broken) == 3
    batches.close()
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the generator of all"


def test_broken_files_are_named_and_move_nothing(tree):
    files = open_images(tree, "train")
    good = [i for i in range(27) if "odd" not in files.name(i)]
    batches = make(files, 5)
    images = torch.cat([batch.images for batch in batches.epoch(4)])
    labels = torch.cat([batch.labels for batch in batches.epoch(4)])
    order = draw_order(27, 3, 4).tolist()
    for image, label, i in zip(images, labels.tolist(), order, strict=True):
        if i in good:
            assert label == int(files.labels[i])
            assert torch.equal(image, decode_train(files.read(i), 16, seed_of("window", 3, 4, i)).float())
        else:
            assert label == IGNORED
            assert float(image.abs().max()) == 0
    reasons = {name.rpartition("_")[2]: reason for name, reason in batches.broken.items()}
    assert len(good) == 24
    assert reasons["empty.JPEG"] == "the file is empty"
    assert "truncated" in reasons["truncated.JPEG"]
    assert "not an image" in reasons["text.JPEG"]
    loss = torch.nn.functional.cross_entropy(torch.zeros(27, 3), labels, reduction="sum")
    assert float(loss) == pytest.approx(24 * float(torch.tensor(3.0).log()))
    assert files.labels.min() >= 0, "the labels themselves stay"
    whitened = StreamBatches(files, 27, 3, size=16, side=18)
    (found,) = whitened.epoch(4)
    assert float(found.images[labels == IGNORED].abs().max()) == 0, "zeros after normalisation"


def test_too_many_broken_files_are_an_error(own):
    files = open_images(own, "train")
    for i in range(6):
        (own / files.name(i)).write_bytes(b"")
    batches = make(files, 24)
    with pytest.raises(TooManyBrokenError, match=r"6 of 24 files cannot be decoded, more than the 5 allowed: train/n0"):
        list(batches.epoch(0))
    assert len(list(make(files, 24, most_broken=0.25).epoch(0))) == 1
    with pytest.raises(TooManyBrokenError, match="more than the 5"):
        list(make(files, 24, most_broken=0.24).epoch(0))
    (own / files.name(5)).write_bytes(files.read(6))
    few = make(files, 8)
    assert [len(list(few.epoch(epoch))) for epoch in range(3)] == [3, 3, 3], "a file counts once, not once an epoch"
    assert len(few.broken) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_deleted_under_way(own, workers):
    files = open_images(own, "train")
    batches = make(files, 3, workers=workers)
    order = draw_order(24, 3, 0).tolist()
    images = []
    for number, batch in enumerate(batches.epoch(0)):
        if number == 0:
            (own / files.name(order[22])).unlink()
        images.append(batch)
    assert [len(batch.labels) for batch in images] == [3] * 8
    assert int((torch.cat([batch.labels for batch in images]) == IGNORED).sum()) == 1
    assert int(images[7].labels[1]) == IGNORED
    ((name, reason),) = batches.broken.items()
    assert name == files.name(order[22])
    assert "No such file" in reason


def test_a_worker_that_is_killed(numbered):
    batches = make(numbered, 2, workers=2)
    stream = batches.epoch(0)
    next(stream)
    victim = batches.pids[1]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(WorkerDiedError, match=rf"ended before its time: (.*{victim}|EOFError)") as caught:
        list(stream)
    assert time.monotonic() - began < 15
    assert isinstance(caught.value, InterruptedRunError), "another try may help"
    assert same(list(batches.epoch(0)), list(make(numbered, 2).epoch(0))), "others take over"
    batches.close()


def test_an_error_of_the_task_is_not_taken_for_a_dead_worker():
    workers = Workers(Failing(), 1)
    with pytest.raises(RuntimeError, match="wrong by design") as caught:
        list(workers([1]))
    assert not isinstance(caught.value, WorkerDiedError)


class Failing:
    def __getitem__(self, key):
        raise RuntimeError("wrong by design")


def test_one_iteration_at_a_time(numbered):
    batches = make(numbered)
    first, second = batches.epoch(0), batches.epoch(1)
    next(first), next(second)
    with pytest.raises(OptionError, match="another iteration"):
        next(first)
    assert len(list(second)) == 3


def test_pixels_are_normalised_as_asked(tree):
    files = open_images(tree, "val")
    raw = torch.cat([batch.images for batch in make(files, 6).plain()])
    (fixed,) = StreamBatches(files, 6, 0, size=16, side=18).plain()
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (raw[:, channel].double() / 255 - mean) / std
        assert float((fixed.images[:, channel] - expected).abs().max()) < 1e-5
    assert IMAGENET_MEAN.shape == IMAGENET_STD.shape == (3,)
    (own,) = StreamBatches(files, 6, 0, "dataset", *pixel_statistics(raw.to(torch.uint8)), size=16, side=18).plain()
    assert float(own.images.mean((0, 2, 3)).abs().max()) < 1e-5
    (each,) = StreamBatches(files, 6, 0, "image", size=16, side=18, channels_last=True).plain()
    assert float(each.images.mean((1, 2, 3)).abs().max()) < 1e-5
    assert each.images.is_contiguous(memory_format=torch.channels_last)
    assert fixed.images.is_contiguous()
    assert fixed.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers = -1"),
        ({"prefetch": 0}, "prefetch = 0"),
        ({"most_broken": 2}, "most_broken = 2"),
        ({"area": (0, 1)}, r"area = \(0, 1\)"),
        ({"area": (0.5, 1.5)}, r"area = \(0.5, 1.5\)"),
        ({"ratio": (2, 1)}, r"ratio = \(2, 1\)"),
        ({"batch": 6, "ranks": 2}, "a batch of 1 cannot be shared by 2 ranks"),
        ({"normalize": "none"}, "normalize = 'none'"),
    ],
)
def test_options_of_no_use(numbered, options, message):
    with pytest.raises(OptionError, match=message):
        StreamBatches(numbered, **{"batch": 5, "seed": 0, **options})
    with pytest.raises(SizeError, match="side = 5"):
        StreamBatches(numbered, 5, 0, size=6, side=5)
