"""The official files: downloaded from mirrors that misbehave, read right, refused when they are anything else."""

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from resid.book.checks.samples.memorize import coincidences
from resid.data import official
from resid.data.loading import load_dataset
from resid.data.official import DataFileError, data_folder, has_official

needs_data = pytest.mark.skipif(
    "RESID_DATA" not in os.environ, reason="the official files are not here: set RESID_DATA"
)


def md5(content):
    return hashlib.md5(content).hexdigest()


def images_of(i):
    return np.random.default_rng(i).integers(0, 256, (3, 3072), dtype=np.uint8)


def batch(values, key):
    """As the official batches are: bytes for keys, and NumPy's names of 2009."""
    content = pickle.dumps({b"data": values, key: list(range(len(values)))}, protocol=3)
    return content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


#: Small files under the official names.
MNIST = {
    file: b"h" * 16 + bytes(range(256)) * 6 + bytes(32) if "images" in file else b"h" * 8 + bytes([7, 2])
    for split in ("train", "test")
    for file in official.FILES["mnist", split]
}
CIFAR = {
    file: batch(images_of(i), b"labels") if name == "cifar10" else batch(images_of(9), b"fine_labels")
    for (name, _), files in official.FILES.items()
    for i, file in enumerate(files)
    if name != "mnist"
}


def archived():
    """The archives of these files."""
    archives = {f"{Path(file).name}.gz": gzip.compress(content) for file, content in MNIST.items()}
    for name in ("cifar-10", "cifar-100"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for file, content in CIFAR.items():
                if file.startswith(f"{name}-"):
                    info = tarfile.TarInfo(file)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        archives[f"{name}-python.tar.gz"] = stream.getvalue()
    return archives


class Mirror(BaseHTTPRequestHandler):
    """Paths: /good/*, /wrong/* (other bytes), /short/* (the line drops), /gone/* (404)."""

    def do_GET(self):
        _, kind, name = self.path.split("/")
        self.server.seen.append(self.path)
        if kind == "gone":
            self.send_error(404)
            return
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write({"wrong": body[::-1], "short": body[:-10]}.get(kind, body))

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of the small files, whose MD5 are taken for the official ones; the data folder is empty."""
    monkeypatch.setenv("RESID_DATA", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as http:
        http.files, http.seen = archived(), []
        contents = MNIST | CIFAR
        for key, files in official.FILES.items():
            monkeypatch.setitem(official.FILES, key, {file: md5(contents[file]) for file in files})
        for archive, content in http.files.items():
            monkeypatch.setitem(official.ARCHIVES, archive, md5(content))
        use(http, monkeypatch, "good")
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


def use(server, monkeypatch, *kinds):
    for name in official.MIRRORS:
        mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{kind}/" for kind in kinds)
        monkeypatch.setitem(official.MIRRORS, name, mirrors)


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_is_fetched_unpacked_and_read(server, tmp_path, split):
    data = load_dataset("mnist", split)
    assert (data.images.shape, data.images.dtype) == ((2, 1, 28, 28), torch.uint8)
    assert data.images[1, 0, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert (data.labels.tolist(), data.labels.dtype) == ([7, 2], torch.int64)
    assert data.source == f"mnist {split}, official"
    assert len(server.seen) == 2
    assert not list(tmp_path.rglob("*tmp*"))
    load_dataset("mnist", split)
    assert len(server.seen) == 2, "what is there is not fetched again"


@pytest.mark.parametrize(("name", "parts"), [("cifar10", 5), ("cifar100", 1)])
def test_cifar_is_fetched_unpacked_and_read(server, name, parts):
    assert not has_official(name)
    data = load_dataset(name)
    assert data.images.shape == (3 * parts, 3, 32, 32)
    assert data.labels.tolist() == [0, 1, 2] * parts
    last = images_of(parts - 1 if name == "cifar10" else 9)
    assert data.images[-2, 1, 0, 2] == last[1, 1024 + 2]
    assert has_official(name)
    assert len(load_dataset(name, "test").labels) == 3
    assert len(server.seen) == 1, "one archive has both splits"


def test_a_good_mirror_after_bad_ones(server, monkeypatch):
    use(server, monkeypatch, "gone", "wrong", "short", "good")
    assert load_dataset("cifar100").labels.tolist() == [0, 1, 2]
    assert [path.split("/")[1] for path in server.seen] == ["gone", "wrong", "short", "good"]


@pytest.mark.parametrize(("kind", "reason"), [("gone", "404"), ("wrong", "hash"), ("short", "ValueError|Error")])
def test_no_wrong_file_gets_the_name(server, tmp_path, monkeypatch, kind, reason):
    use(server, monkeypatch, kind)
    with pytest.raises(DataFileError, match=rf"cifar-10-python.tar.gz is not in .* \(http://.*/{kind}/.*({reason})"):
        load_dataset("cifar10", "test")
    assert not list(tmp_path.iterdir())


def test_without_network_the_folder_the_variable_and_the_addresses_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(official.MIRRORS, "cifar100", ("http://127.0.0.1:9/",))
    with pytest.raises(
        DataFileError, match=r"not in .*127\.0\.0\.1:9/cifar-100-python.tar.gz.*MD5 eb90.*RESID_DATA"
    ) as e:
        load_dataset("cifar100", folder=tmp_path)
    assert str(tmp_path) in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFileError, match="file and could not be downloaded"):
        load_dataset("mnist", folder=tmp_path / "file")

    write = Path.write_bytes

    def full(path, content):
        write(path, content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(official.Path, "write_bytes", full)
        with pytest.raises(DataFileError, match=r"cannot be unpacked in .*RESID_DATA names: .*No space left on device"):
            load_dataset("mnist", "test")
    assert not list(tmp_path.rglob("*.tmp"))
    assert load_dataset("mnist", "test").labels.tolist() == [7, 2], "another try goes on"


def test_a_file_that_is_not_the_official_one_is_refused_before_it_is_unpickled(server, tmp_path):
    load_dataset("cifar10", "test")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for wrong in (whole[:-10], whole[:-1] + b"x", b"", pickle.dumps(Evil())):
        path.write_bytes(wrong)
        with pytest.raises(DataFileError, match=rf"test_batch has {len(wrong)} bytes and MD5 .* delete it"):
            load_dataset("cifar10", "test")


class Evil:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


FETCH = """
import sys
from resid.data import official
official.FILES["mnist", "test"] = eval(sys.argv[1])
official.ARCHIVES.update(eval(sys.argv[2]))
official.MIRRORS["mnist"] = (sys.argv[3],)
print(official.read_official("mnist", "test")[1].tolist())
"""


def test_processes_beside_each_other_do_not_spoil_a_file(server, tmp_path):
    given = [repr(official.FILES["mnist", "test"]), repr(official.ARCHIVES), official.MIRRORS["mnist"][0]]
    command = [sys.executable, "-c", FETCH, *given]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["[7, 2]"] * 3
    assert not list(tmp_path.rglob("*tmp*"))


def test_archives_have_every_file_and_several_mirrors():
    for (name, _), files in official.FILES.items():
        assert {official._archive_of(name, file) for file in files} <= official.ARCHIVES.keys()
        assert len(official.MIRRORS[name]) >= 2
        assert all(url.startswith("https://") and url.endswith("/") for url in official.MIRRORS[name])
    assert all(len(value) == 32 for value in official.ARCHIVES.values())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataFileError, match=f"{tmp_path} cannot be read: .*directory"):
        official._read(tmp_path, "")


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
    data = load_dataset(name, split)
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
    data = load_dataset("cifar100")
    found = coincidences(data.images, data.labels)
    assert (found.pairs, found.conflicting) == (14, 9)
