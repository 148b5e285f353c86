"""What others have made is named with its licence where a user looks, and only the tag of the version is published."""

import re
import subprocess
import tarfile
import tomllib

import pytest
import yaml
from sphinx.util.fileutil import copy_asset
from sphinx.util.matching import Matcher

from tools import assets
from tools.paths import ROOT

EMBEDDED = ROOT / "resid" / "data" / "embedded"
LICENSE = (ROOT / "LICENSE").read_text("utf-8")
THIRD_PARTY = LICENSE.partition("\nThird-party\n")[2]


def readme_section():
    return re.search(r"(?ms)^## Licences\n(.*?)(?=^## |\Z)", (ROOT / "README.md").read_text("utf-8"))[1]


def paragraph(name):
    """The lines of the third-party section that speak of this name."""
    (found,) = (p for p in re.split(r"\n\n|\n(?=_static/\S+ - )", THIRD_PARTY) if p.startswith(name))
    return " ".join(found.split())


def test_embedded_data_are_named_with_their_licence():
    data = [p for p in EMBEDDED.iterdir() if p.name != "README.md"]
    assert [p.name for p in data] == ["mnist_whitened.npz"], "name the licence of what is new in LICENSE and README.md"
    name = data[0].relative_to(ROOT).as_posix()
    told = paragraph(name)
    assert "CC BY-SA 3.0" in told
    assert "https://creativecommons.org/licenses/by-sa/3.0/" in told
    for asked in ("by Yann LeCun, Corinna Cortes", "Derived by this project from", "Changed:"):  # by the licence
        assert asked in told
    for asked in (f"`{name}`", "CC BY-SA 3.0"):
        assert asked in readme_section()
    assert "under CC BY-SA 3.0" in (EMBEDDED / "README.md").read_text("utf-8")
    assert "everything in resid/ but resid/data/embedded/" in LICENSE.partition("MIT License")[0]


def test_the_package_says_all_its_licences():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["license"].split(" AND ")) == {"MIT", "CC-BY-4.0", "CC-BY-SA-3.0"}
    assert project["license-files"] == ["LICENSE", (EMBEDDED / "README.md").relative_to(ROOT).as_posix()]


def test_what_the_site_serves_from_npm_is_named_with_its_licence():
    told = paragraph("_static/mathjax/")
    assert f"MathJax {assets.MATHJAX.version}" in told
    assert "Apache License 2.0" in told
    assert "_static/mathjax/LICENSE" in told
    assert "MathJax, under the Apache License 2.0" in readme_section()


def test_the_licence_of_mathjax_lies_beside_it_on_the_site(tmp_path, monkeypatch):
    """Fetched from the archive, also into a folder of an earlier commit that has none, and copied as Sphinx copies."""
    package, source = tmp_path / "package", assets.MATHJAX.keep
    for name in source:
        path = tmp_path / name
        if "." not in path.name and path.name != "LICENSE":
            path = path / "font.woff"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {path.name}")
    monkeypatch.setattr(assets, "ASSETS", tmp_path / "assets")
    calls = []

    def retrieve(url, path, fname, **_):
        calls.append(url)
        path.mkdir(exist_ok=True)
        with tarfile.open(path / fname, "w:gz") as tar:
            tar.add(package, "package")
        return str(path / fname)

    monkeypatch.setattr(assets.pooch, "retrieve", retrieve)
    earlier = assets.MATHJAX.folder / "mathjax"
    earlier.mkdir(parents=True)
    (earlier / "tex-chtml.js").write_text("no licence beside it")
    for _ in range(2):
        folder = assets.fetch(assets.MATHJAX)
    assert len(calls) == 1
    excluded = yaml.safe_load((ROOT / "_config.yml").read_text())["exclude_patterns"]
    copy_asset(folder, tmp_path / "_static", excluded=Matcher([*excluded, "**/.*"]))
    for name in ("tex-chtml.js", "LICENSE", "output/chtml/fonts/woff-v2/font.woff"):
        copied = tmp_path / "_static" / "mathjax" / name
        assert copied.read_text() == f"content of {copied.name}"


@pytest.mark.parametrize(
    ("tag", "version", "passes"),
    [
        ("v1.2.0", "1.2.0", True),
        ("v1.2.0rc1", "1.2.0rc1", True),
        ("v.0.2.0", "10.2.0", False),  # git allows this name; the tag was a pattern, in which a dot is any sign
        ("v1.2.0", "1.200", False),
        ("v1.2.0", "1x2y0", False),
        ("v1x2y0", "1.2.0", False),
        ("v1.2.01", "1.2.0", False),
        ("v1.2", "1.2.0", False),
        ("v1.2.0-rc", "1.2.0", False),
        ("vv1.2.0", "1.2.0", False),
        ("v", "1.2.0", False),
    ],
)
def test_only_the_tag_of_the_version_is_published(tmp_path, tag, version, passes):
    """The workflow's own script, run as GitHub runs it."""
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]["build"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("name") == "the tag is the version")
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "resid-book"\nversion = "{version}"\n')
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env={"TAG": tag, "PATH": "/usr/bin:/bin"})
    assert (done.returncode == 0) is passes


def test_the_version_stands_on_one_line_of_pyproject():
    """The check of the tag compares lines: a second one of this form would let a second tag through."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert sum(line.startswith("version = ") for line in lines) == 1
