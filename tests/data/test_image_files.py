"""Folders and parquet files: the same images with the same labels, and every slip of a layout named."""

import json
import os
import pickle
import shutil
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resid.book.experiments.sample_images import ODD, write_sample_tree
from resid.data.download import DataFileError
from resid.data.image_check import IMAGENET, Expected, check_images
from resid.data.image_files import open_images, splits_of
from resid.data.images_cli import main
from resid.errors import OptionError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_sample_tree(tmp_path_factory.mktemp("tree"), classes=3, per_class=4, val=2, seed=1)


@pytest.fixture
def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "copy")


def write_parquet(folder, rows, split="train", shards=2, names=None, of=None, group=3):
    """Shards of the Hub's layout: rows of (bytes, path, label)."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    if names is not None:
        info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        schema = schema.with_metadata({"huggingface": json.dumps(info)})
    each = -(-len(rows) // shards)
    for k in range(shards):
        part = [{"image": {"bytes": b, "path": p}, "label": v} for b, p, v in rows[k * each : (k + 1) * each]]
        path = folder / "data" / f"{split}-{k:05d}-of-{of or shards:05d}-0123456789abcdef.parquet"
        pq.write_table(pa.Table.from_pylist(part, schema=schema), path, row_group_size=group)
    return folder


def rows_of(files, path=lambda name, synset: f"{name.rpartition('/')[2][:-5]}_{synset}.JPEG"):
    """In an order that mixes the classes."""
    order = sorted(range(len(files)), key=lambda i: (i * 7) % len(files))
    return [(files.read(i), path(files.name(i), files.classes[files.labels[i]]), int(files.labels[i])) for i in order]


def test_classes_are_the_sorted_folders(tmp_path, monkeypatch):
    scan, names = os.scandir, os.listdir

    @contextmanager
    def backwards(path):
        with scan(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)  # file systems give any order
    monkeypatch.setattr(os, "listdir", lambda path: sorted(names(path), reverse=True))
    for synset in ("n00000010", "n00000002", "n00000001"):
        for i in (2, 0, 1):
            place = tmp_path / "train" / synset
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{synset}_{i}.JPEG").write_bytes(f"{synset} {i}".encode())
    (place / "notes.txt").touch()
    (tmp_path / "train" / ".hidden").mkdir()
    files = open_images(tmp_path, "train")
    assert files.classes == ("n00000001", "n00000002", "n00000010")
    assert files.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files.counts().tolist() == [3, 3, 3]
    for i, label in enumerate(files.labels.tolist()):
        assert files.read(i).decode() == f"{files.classes[label]} {i % 3}"
        assert files.name(i) == f"train/{files.classes[label]}/{files.classes[label]}_{i % 3}.JPEG"
    assert files.ignored == (f"train/{synset}/notes.txt",)
    assert files.verified
    assert splits_of(tmp_path) == ["train"]


def test_parquet_has_the_images_and_labels_of_the_folders(tree, tmp_path):
    folders = {split: open_images(tree, split) for split in ("train", "val")}
    write_parquet(tmp_path, rows_of(folders["train"]))
    write_parquet(tmp_path, rows_of(folders["val"]), "validation", shards=1)
    for split, expected in folders.items():
        found = open_images(tmp_path, split, expected.classes)
        assert found.verified
        assert found.classes == expected.classes
        assert found.counts().tolist() == expected.counts().tolist()
        read = [(found.read(i), int(label)) for i, label in enumerate(found.labels)]
        assert read == [(content, label) for content, _, label in rows_of(expected)]
    assert found.name(1).startswith("validation-00000-of-00001-0123456789abcdef.parquet#1/n0000000")
    assert len(open_images(tmp_path, "validation")) == 6


def test_row_groups_are_read_once_in_order_and_travel_to_other_processes_closed(tree, tmp_path, monkeypatch):
    rows = rows_of(open_images(tree, "train"))
    files = open_images(write_parquet(tmp_path, rows, shards=2, group=2), "train")
    calls = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: calls.append(a[1]) or read(*a, **k))
    assert [files.read(i) for i in range(12)] == [content for content, _, _ in rows]
    assert len(calls) == 6
    assert len(pickle.dumps(files)) < 4000, "no content travels"
    assert pickle.loads(pickle.dumps(files)).read(11) == rows[11][0]
    monkeypatch.setattr("resid.data.image_files.KEPT", 0)
    calls.clear()
    again = open_images(tmp_path, "train")
    assert [again.read(i) for i in (0, 3, 0, 1)] == [rows[i][0] for i in (0, 3, 0, 1)]
    assert len(calls) == 3, "only the last is kept"


def test_without_synsets_the_order_cannot_be_verified(tree, tmp_path):
    rows = rows_of(open_images(tree, "train"), lambda name, synset: None)
    named = open_images(write_parquet(tmp_path / "a", rows, names=["tench", "goldfish", "cock"]), "train")
    assert named.classes == ("tench", "goldfish", "cock")
    assert not named.verified
    assert open_images(write_parquet(tmp_path / "b", rows), "train").classes == ("class 0", "class 1", "class 2")
    assert "cannot be verified" in "\n".join(check_images(tmp_path / "a", pixels=False).lines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [(b, p, 2 - v) for b, p, v in rows], "label 1 is n00000001 and label 0 is n00000002"),
        (lambda rows: [(*rows[0][:2], (rows[0][2] + 1) % 3), *rows[1:]], "is that of n0000000"),
        (lambda rows: [(*rows[0][:2], -1), *rows[1:]], r"label -1 is not in 0 \.\.\. 2"),
        (lambda rows: [(*rows[0][:2], 3), *rows[1:]], r"label 3 is not in 0 \.\.\. 2"),
        (lambda rows: [(*rows[0][:2], None), *rows[1:]], "label None"),
        (lambda rows: [row for row in rows if row[2] != 1], "class 1, 'b', has no image"),
    ],
)
def test_labels_that_cannot_be_right(tree, tmp_path, change, message):
    write_parquet(tmp_path, change(rows_of(open_images(tree, "train"))), names=["a", "b", "c"])
    with pytest.raises(DataFileError, match=message):
        open_images(tmp_path, "train")


def test_shards_that_are_missing_or_damaged(tree, tmp_path):
    rows = rows_of(open_images(tree, "train"))
    write_parquet(tmp_path / "a", rows, shards=2, of=3)
    with pytest.raises(DataFileError, match="0 parquet files of train have the number 2 of 3"):
        open_images(tmp_path / "a", "train")
    shard = next((write_parquet(tmp_path / "b", rows) / "data").glob("train-00001*"))
    with pytest.raises(DataFileError, match="has parquet files of train, not of val"):
        open_images(tmp_path / "b", "val")
    files = open_images(tmp_path / "b", "train")
    shard.write_bytes(shard.read_bytes()[:900])
    with pytest.raises(OSError, match=r"damaged|Parquet|magic"):
        files.read(11)
    with pytest.raises(DataFileError, match="cannot be read"):
        open_images(tmp_path / "b", "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        files.read(10)
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "b" / "data" / shard.name)
    with pytest.raises(DataFileError, match="columns image"):
        open_images(tmp_path / "b", "train")


def test_folders_that_are_missing_empty_or_unknown(copy):
    train = open_images(copy, "train")
    with pytest.raises(DataFileError, match="class 'n1' of the classes asked for is missing"):
        open_images(copy, "train", (*train.classes, "n1"))
    with pytest.raises(DataFileError, match=r"class 'n00000002' of .*val is unknown to the classes asked for"):
        open_images(copy, "val", train.classes[:2])
    with pytest.raises(DataFileError, match="class 0 is 'n00000001' in the classes asked for and 'n00000000' in"):
        open_images(copy, "val", ("n00000001", "n00000000", "n00000002"))
    (copy / "val" / "n00000001").rename(copy / "val" / "n00000009")
    for split in ("train", "val"):
        with pytest.raises(DataFileError, match=r"class 'n0000000[19]' of .* is missing in"):
            open_images(copy, split)
    shutil.rmtree(copy / "val")
    with pytest.raises(DataFileError, match="neither a folder 'val' nor parquet"):
        open_images(copy, "val")
    for file in (copy / "train" / "n00000001").iterdir():
        file.unlink()
    with pytest.raises(DataFileError, match="the folder of class 'n00000001' has no image"):
        open_images(copy, "train")
    with pytest.raises(OptionError, match="split = 'test'"):
        open_images(copy, "test")
    with pytest.raises(DataFileError, match="is not a folder"):
        open_images(copy / "nowhere", "train")
    with pytest.raises(DataFileError, match="neither folders"):
        splits_of(copy / "train" / "n00000000")


def flatten(root):
    """Move the images of val into one folder, as they come; returns the class of each."""
    solution = {}
    for number, path in enumerate(sorted((root / "val").glob("*/*.JPEG"), key=lambda p: p.name[::-1]), 1):
        name = f"ILSVRC2012_val_{number:08d}"
        solution[name] = path.parent.name
        path.rename(root / "val" / f"{name}.JPEG")
    for place in (root / "val").iterdir():
        if place.is_dir():
            place.rmdir()
    return solution


def test_the_flat_validation_folder(copy):
    contents = {open_images(copy, "val").read(i): int(v) for i, v in enumerate(open_images(copy, "val").labels)}
    solution = flatten(copy)
    with pytest.raises(DataFileError, match=r"LOC_val_solution.csv is in neither .*another order"):
        open_images(copy, "val")
    lines = [f"{name},{synset} 1 2 30 40 {synset} 5 6 70 80 \n" for name, synset in reversed(solution.items())]
    table = copy / "LOC_val_solution.csv"
    table.write_text("ImageId,PredictionString\n" + "".join(lines))
    files = open_images(copy, "val")
    assert {files.read(i): int(v) for i, v in enumerate(files.labels)} == contents
    assert files.classes == open_images(copy, "train").classes
    table.write_text("ImageId,PredictionString\n" + "".join(lines[1:]))
    with pytest.raises(DataFileError, match="has no class of ILSVRC2012_val_00000006"):
        open_images(copy, "val")
    table.write_text("ImageId,PredictionString\n" + "".join([*lines, "ILSVRC2012_val_00000007,n00000001 1 2 3 4\n"]))
    with pytest.raises(DataFileError, match="lacks ILSVRC2012_val_00000007, one of 1"):
        open_images(copy, "val")
    table.write_text("a,b\n")
    with pytest.raises(DataFileError, match="columns ImageId"):
        open_images(copy, "val")
    table.write_text("ImageId,PredictionString\n" + "".join(lines).replace("n00000001", "n00000007"))
    with pytest.raises(DataFileError, match=r"class 'n00000001' of .*train is missing"):
        open_images(copy, "val")


def expecting(tree, images=(12, 6), per_class=((4, 4), (2, 2)), classes=3):
    splits = ("train", "val")
    return Expected(
        "sample", classes, dict(zip(splits, images, strict=True)), dict(zip(splits, per_class, strict=True))
    )


def test_a_check_names_the_first_mismatch(copy):
    assert check_images(copy, expecting(copy)).good
    assert check_images(copy, expecting(copy)).lines()[-1] == "no mismatch"
    assert check_images(copy, IMAGENET, pixels=False).mismatch == "train has 3 classes, ImageNet 1000"
    (copy / "train" / "n00000002" / "n00000002_3.JPEG").unlink()
    report = check_images(copy, expecting(copy))
    assert not report.good
    assert report.mismatch == "class 'n00000002' of train has 3 images, those of sample 4 to 4"
    assert check_images(copy, expecting(copy, per_class=((3, 4), (2, 2)))).mismatch == (
        "train has 11 images, sample 12"
    )
    (copy / "val" / "n00000000").rename(copy / "val" / "n00000003")
    assert "class 'n00000003'" in check_images(copy, expecting(copy)).mismatch
    shutil.rmtree(copy / "val")
    assert check_images(copy, expecting(copy, (11, 6), ((3, 4), (2, 2)))).mismatch == "val is missing"
    shutil.rmtree(copy / "train")
    assert "neither folders" in check_images(copy, expecting(copy)).mismatch


def test_a_check_decodes_every_file(tmp_path, capsys):
    write_sample_tree(tmp_path, classes=2, per_class=1, val=1, odd=ODD)
    seen = []
    found = check_images(tmp_path, say=lambda *numbers: seen.append(numbers)).splits["train"]
    assert sorted(name.rpartition("_")[2] for name in found.broken) == ["empty.JPEG", "text.JPEG", "truncated.JPEG"]
    assert all(name.startswith("train/n0000000") for name in found.broken)
    assert found.turned == 1
    assert seen[-1] == (2 + len(ODD) + 2,) * 2
    assert main(["check", str(tmp_path), "--workers", "0"]) == 1
    shown = capsys.readouterr().out
    assert "3 files cannot be decoded, 1 are stored in another orientation" in shown
    assert "_odd_empty.JPEG: the file is empty" in shown
    assert main(["check", str(tmp_path), "--quick"]) == 1
    assert "cannot be decoded" not in capsys.readouterr().out


def test_samples_are_the_same_every_time_and_differ(tmp_path, tree):
    again = write_sample_tree(tmp_path, classes=3, per_class=4, val=2, seed=1)
    contents = {}
    for path in sorted(tree.rglob("*.JPEG")):
        contents[path] = path.read_bytes()
        assert (again / path.relative_to(tree)).read_bytes() == contents[path]
    assert len(set(contents.values())) == 18
    other = write_sample_tree(tmp_path / "other", classes=3, per_class=4, val=2, seed=2)
    assert not set(contents.values()) & {path.read_bytes() for path in other.rglob("*.JPEG")}
    with pytest.raises(OptionError, match="odd = 'bmp'"):
        write_sample_tree(tmp_path / "third", odd=("bmp",))
