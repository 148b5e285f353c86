"""Sphinx configuration read from `_config.yml`, so that there is one configuration and two ways to build."""

import sys
from pathlib import Path

import yaml

_root = Path(__file__).resolve().parent  # `python -m tools.twin` puts this file beside a copy of the staged book
_c = yaml.safe_load((_root / "_config.yml").read_text())
sys.path.insert(0, str(_root / "book" / "_ext"))

project = html_title = _c["title"]
author, copyright = _c["author"], str(_c["copyright"])
exclude_patterns = ["_build", "**.ipynb_checkpoints", *_c["exclude_patterns"]]
extensions = [
    "myst_nb",
    "sphinx_external_toc",
    "sphinx_multitoc_numbering",
    "sphinx_book_theme",
    "sphinx_copybutton",
    "sphinx_togglebutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    *_c["sphinx"]["extra_extensions"],
    *_c["sphinx"]["local_extensions"],
]
external_toc_path, external_toc_exclude_missing = "_toc.yml", _c["only_build_toc_files"]
use_multitoc_numbering = True
bibtex_bibfiles = _c["bibtex_bibfiles"]
myst_enable_extensions = _c["parse"]["myst_enable_extensions"]
nb_execution_mode = "off"  # the stage has the outputs
html_theme = "sphinx_book_theme"
html_logo, html_favicon = _c["logo"], _c["html"]["favicon"]
html_sourcelink_suffix = ""
_s = dict(_c["sphinx"]["config"])
html_theme_options = {
    "repository_url": _c["repository"]["url"],
    "repository_branch": _c["repository"]["branch"],
    "path_to_docs": _c["repository"]["path_to_book"],
    "launch_buttons": _c["launch_buttons"],
    **{name: value for name, value in _c["html"].items() if name.startswith("use_")},
    **_s.pop("html_theme_options"),
}
globals().update(_s)
