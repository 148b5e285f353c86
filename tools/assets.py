"""Third-party files the site and its checks need: fetched once from the npm registry, verified by SHA-512."""

from __future__ import annotations

import shutil
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pooch

from tools.paths import ASSETS


@dataclass(frozen=True)
class Package:
    """An npm package: which version, its tarball's hash, and which files of it are kept under which name."""

    name: str
    version: str
    sha512: str
    keep: dict[str, str]

    @property
    def folder(self) -> Path:
        """Where it lies; the version is part of the name, so another one never serves by mistake."""
        return ASSETS / f"{self.name}-{self.version}"

    @property
    def is_complete(self) -> bool:
        """All that is kept lies there; not so in a folder of an earlier commit, which kept less."""
        return all((self.folder / target).exists() for target in self.keep.values())


MATHJAX = Package(
    "mathjax",
    "3.2.2",
    "06df9249553c7811b6ef30a155ec0e89c62ced7b1db78d2a9b8f94a47c97ee4d"
    "3f3bd36588f73ec7bee4d7f144b0fb2328f64626fb5164cd6f3be81e5b43a11b",
    {
        "package/LICENSE": "mathjax/LICENSE",  # the site serves the script, and with it its licence
        "package/es5/tex-chtml.js": "mathjax/tex-chtml.js",
        "package/es5/output/chtml/fonts/woff-v2": "mathjax/output/chtml/fonts/woff-v2",
    },
)
AXE = Package(
    "axe-core",
    "4.14.1",
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5",
    {"package/axe.min.js": "axe.min.js"},
)


def _download(url: str, output_file: str, cache: object) -> None:
    """By the standard library, which trusts what the system trusts; where that fails, by requests and its own list."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(output_file, "wb") as file:
            shutil.copyfileobj(answer, file)
    except OSError:
        pooch.HTTPDownloader()(url, output_file, cache)


def fetch(package: Package) -> Path:
    """The folder of the kept files; downloads and unpacks if one of them is not there."""
    if package.is_complete:
        return package.folder
    archive = pooch.retrieve(
        f"https://registry.npmjs.org/{package.name}/-/{package.name}-{package.version}.tgz",
        known_hash=f"sha512:{package.sha512}",
        path=ASSETS,
        fname=f"{package.name}-{package.version}.tgz",
        downloader=_download,
    )
    unpacked = ASSETS / f".{package.name}.tmp"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        # Python 3.11.2, Debian 12's, has no filters; the archive's hash has been compared
        tar.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    made = ASSETS / f".{package.name}.kept"
    shutil.rmtree(made, ignore_errors=True)
    for source, target in package.keep.items():
        (made / target).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / source).rename(made / target)
    shutil.rmtree(package.folder, ignore_errors=True)
    made.rename(package.folder)
    shutil.rmtree(unpacked)
    Path(archive).unlink()
    return package.folder


if __name__ == "__main__":
    for wanted in (MATHJAX, AXE):
        print(fetch(wanted))
