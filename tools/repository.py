"""Write the repository's address into the notebooks: `python -m tools.repository [URL]`.

The address stands in `_config.yml` alone. With a URL it is changed there first. The setup cell of every notebook and
the Colab link in its first cell are then rewritten from it and from the version in pyproject.toml, whose tag `v...` is
what Colab installs.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

from tools.notebooks import notebooks
from tools.paths import ROOT

SETUP = """\
import importlib.util

if importlib.util.find_spec("resid") is None:
    # on Colab, say; torch and numpy stay as they are
    %pip install -q --no-deps "resid-book @ git+{url}@v{version}"

from resid import book

book.setup(mode=MODE, seed=SEED)"""
_ADDRESS = re.compile(r"^https://github\.com/[A-Za-z0-9-]+/[A-Za-z0-9._-]+$")
_COLAB = re.compile(r"\[open in Colab\]\([^)]*\)")


def address() -> str:
    """The repository's address in `_config.yml`."""
    return yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]


def version() -> str:
    """The version in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def setup_cell() -> str:
    """What the setup cell of every notebook must be."""
    return SETUP.format(url=address(), version=version())


def colab_link(path: Path) -> str:
    """The Markdown link that opens a notebook of the tagged version in Colab."""
    owner_and_name = address().removeprefix("https://github.com/")
    return (
        "[open in Colab](https://colab.research.google.com/github/"
        f"{owner_and_name}/blob/v{version()}/{path.relative_to(ROOT).as_posix()})"
    )


def rewritten(path: Path) -> str:
    """The notebook's text with its setup cell and Colab link as they must be."""
    content = json.loads(path.read_text("utf-8"))
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if "setup" in cell["metadata"].get("tags", []):
            source = setup_cell()
        elif cell["cell_type"] == "markdown":
            source = _COLAB.sub(lambda _: colab_link(path), source)
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def set_address(url: str) -> None:
    """Change the address in `_config.yml`, keeping the rest of the file to the letter."""
    if not _ADDRESS.match(url):
        sys.exit(f"{url!r} is not an address like https://github.com/owner/name")
    file = ROOT / "_config.yml"
    text, count = re.subn(r"^(repository:\n  url: ).*$", rf"\g<1>{url}", file.read_text(), flags=re.MULTILINE)
    assert count == 1, "_config.yml must have one line `  url:` right after `repository:`"
    file.write_text(text)


def main() -> None:
    """Command line."""
    if len(sys.argv) > 1:
        set_address(sys.argv[1])
    for path in notebooks():
        text = rewritten(path)
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            print(f"rewrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
