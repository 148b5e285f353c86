"""Downloads from a server on this machine that misbehaves in every way a mirror can."""

import gzip
import hashlib
import io
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from resid.data import download, official
from resid.data.download import ARCHIVES, Archive, DataFileError, fetch, unpack
from resid.data.official import load_official

CONTENT = bytes(range(256)) * 2000


class Mirror(BaseHTTPRequestHandler):
    """Paths: /good/*, /ranges/* (drops the line after 100,000 bytes, but continues), /short/* (drops, no ranges),
    /wrong/* (other bytes), /gone/* (404)."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.seen.append((self.path, self.headers.get("Range")))
        if kind == "gone":
            self.send_error(404)
            return
        body = self.server.files[self.path.split("/")[-1]]
        body = body[::-1] if kind == "wrong" else body
        start = 0
        if kind == "ranges" and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + 100_000 if kind in ("ranges", "short") else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as http:
        http.files, http.seen = {"file.gz": CONTENT}, []
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http
        http.shutdown()
        thread.join(10)


def archive(server, *kinds, name="file.gz"):
    md5 = hashlib.md5(server.files[name]).hexdigest()
    root = f"http://127.0.0.1:{server.server_port}"
    return Archive(name, md5, tuple(f"{root}/{kind}/{name}" for kind in kinds))


def test_a_good_mirror_after_bad_ones(server, tmp_path):
    path = fetch(archive(server, "gone", "wrong", "good"), tmp_path, progress=False)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file.gz"]
    seen = len(server.seen)
    assert fetch(archive(server, "gone"), tmp_path, progress=False) == path  # there already: no network
    assert len(server.seen) == seen


def test_an_interrupted_download_is_continued(server, tmp_path):
    # 512,000 bytes, at most 100,000 an answer: two mirrors, three rounds
    path = fetch(archive(server, "ranges", "ranges"), tmp_path, progress=False)
    assert path.read_bytes() == CONTENT
    asked = [int(kind.removeprefix("bytes=").removesuffix("-")) for _, kind in server.seen[1:]]
    assert server.seen[0][1] is None
    assert all(90_000 < b - a <= 100_000 for a, b in pairwise([0, *asked]))
    assert [p.name for p in tmp_path.iterdir()] == ["file.gz"]


def test_what_has_arrived_is_kept_for_the_next_call(server, tmp_path):
    with pytest.raises(DataFileError, match=r"could not be downloaded.*/ranges/file[.]gz: \w+Error.*MD5"):
        fetch(archive(server, "ranges"), tmp_path, progress=False)
    (part,) = tmp_path.iterdir()
    assert part.name == "file.gz.part"
    assert 270_000 < part.stat().st_size <= 300_000
    assert fetch(archive(server, "ranges"), tmp_path, progress=False).read_bytes() == CONTENT


def test_a_mirror_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(CONTENT[:1000])
    assert fetch(archive(server, "good"), tmp_path, progress=False).read_bytes() == CONTENT
    assert server.seen == [("/good/file.gz", "bytes=1000-")]


def test_a_part_of_another_file_does_no_harm(server, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(b"x" * 450_000)
    path = fetch(archive(server, "ranges", "good"), tmp_path, progress=False)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["gone", "wrong", "short"])
def test_no_wrong_file_gets_the_name(server, tmp_path, kind):
    with pytest.raises(DataFileError, match=r"file[.]gz could not be downloaded"):
        fetch(archive(server, kind), tmp_path, progress=False)
    assert not (tmp_path / "file.gz").exists()
    assert all(p.name.endswith(".part") for p in tmp_path.iterdir())


def test_no_network_is_a_clear_error(tmp_path):
    closed = Archive("file.gz", "0" * 32, ("http://127.0.0.1:9/file.gz",))
    with pytest.raises(DataFileError, match=r"127\.0\.0\.1:9/file\.gz: ConnectionError.*by other means"):
        fetch(closed, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    real = download.Path.open

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.Path, "open", lambda p, mode: (real(p, mode).close(), Full())[1])
    with pytest.raises(DataFileError, match=r"cannot be written \(No space left on device\): RESID_DATA"):
        fetch(archive(server, "good"), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFileError, match=r"file cannot be written \((File exists|Not a directory)\)"):
        fetch(archive(server, "good"), tmp_path / "file", progress=False)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataFileError, match="cannot be written"):
        fetch(archive(server, "good"), tmp_path, progress=False)
    tmp_path.chmod(0o700)


def tar_of(**files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_unpacking_takes_the_named_members_and_nothing_else(tmp_path):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar_of(folder__one=b"1", folder__two=b"2", **{"..__evil": b"x"}))
    sums = {"folder/one": hashlib.md5(b"1").hexdigest()}
    unpack(path, sums, tmp_path / "out")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted((tmp_path / "out").rglob("*"))] == [
        "out/folder",
        "out/folder/one",
    ]
    assert (tmp_path / "out/folder/one").read_bytes() == b"1"
    with pytest.raises(DataFileError, match=r"folder/one in .* has MD5 .*, the official file has 0+"):
        unpack(path, {"folder/one": "0" * 32}, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataFileError, match=r"damaged or not the official archive.*'folder/three'"):
        unpack(path, {"folder/three": "0" * 32}, tmp_path / "other")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataFileError, match="damaged"):
        unpack(path, sums, tmp_path / "other")
    single = tmp_path / "b.gz"
    single.write_bytes(gzip.compress(b"1"))
    unpack(single, {"deep/b": sums["folder/one"]}, tmp_path / "out")
    assert (tmp_path / "out/deep/b").read_bytes() == b"1"


def test_a_data_set_is_fetched_unpacked_and_read(server, tmp_path, monkeypatch):
    images, labels = b"h" * 16 + bytes(2 * 784), b"h" * 8 + bytes([3, 4])
    monkeypatch.setitem(
        official.FILES,
        ("mnist", "test"),
        {f"MNIST/raw/{name}": hashlib.md5(c).hexdigest() for name, c in (("images", images), ("labels", labels))},
    )
    server.files |= {"images.gz": gzip.compress(images), "labels.gz": gzip.compress(labels)}
    archives = tuple(archive(server, "good", name=name) for name in ("images.gz", "labels.gz"))
    monkeypatch.setitem(official.ARCHIVES, "mnist", archives)
    with pytest.raises(DataFileError, match=r"images cannot be read .* download=True"):
        load_official("mnist", "test", tmp_path, download=False)
    assert server.seen == []
    assert load_official("mnist", "test", tmp_path).labels.tolist() == [3, 4]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["images", "labels"]
    seen = len(server.seen)
    load_official("mnist", "test", tmp_path)
    assert len(server.seen) == seen


def test_archives_name_every_file_and_have_several_mirrors():
    for name, split in official.FILES:
        for file in official.FILES[name, split]:
            assert sum(official._holds(a, file) for a in ARCHIVES[name]) == 1
    for archives in ARCHIVES.values():
        for a in archives:
            assert len(a.urls) >= 2
            assert all(url.startswith("https://") and url.endswith("/" + a.name) for url in a.urls)
            assert len(a.md5) == 32
