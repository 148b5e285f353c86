"""What the site needs beyond `_config.yml`: addresses derived from one, local MathJax, small fixes of the page head."""

import os
import zlib
from pathlib import Path
from urllib.parse import urlsplit

# Names the pages link to in other projects' documentation. Reading a local inventory keeps the build off the network.
INVENTORIES = {
    "python": (
        "https://docs.python.org/3/",
        {
            "pathlib.Path": ("py:class", "library/pathlib.html#$"),
            "ValueError": ("py:exception", "library/exceptions.html#$"),
            "OSError": ("py:exception", "library/exceptions.html#$"),
        },
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "torch.Tensor": ("py:class", "tensors.html#$"),
            "torch.Generator": ("py:class", "generated/torch.Generator.html#$"),
            "torch.nn.Module": ("py:class", "generated/torch.nn.Module.html#$"),
        },
    ),
}


def site_address(repository):
    """The address GitHub Pages gives the site of a repository."""
    owner, name = urlsplit(repository).path.strip("/").split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def _configure(app, config):
    repository = config.html_theme_options["repository_url"]
    config.html_baseurl = config.ogp_site_url = site_address(repository)
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    for project, (_, names) in INVENTORIES.items():
        _write_inventory(folder / f"{project}.inv", project, names)
    config.intersphinx_mapping = {
        project: (address, str(folder / f"{project}.inv"))
        for project, (address, _) in INVENTORIES.items()
    }
    # set by tools/site.py; without it (plain `jupyter-book build .`) pages load MathJax from Sphinx's default address
    if mathjax := os.environ.get("RESID_MATHJAX"):
        config.html_static_path = [*config.html_static_path, mathjax]
        config.mathjax_path = "mathjax/tex-chtml.js"


def _write_inventory(path, project, names):
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: stable\n"
    head += "# The remainder of this file is compressed using zlib.\n"
    body = "".join(
        f"{name} {role} 1 {address} -\n"
        for name, (role, address) in names.items()
    )
    path.write_bytes(head.encode() + zlib.compress(body.encode(), 9))


def _drop_thebe(app, pagename, templatename, context, doctree):
    """sphinx-thebe declares a constant twice on every page, a script error; the book does not use it."""

    def kept(file):
        body = getattr(file, "attributes", {}).get("body") or ""
        return "thebe" not in str(
            getattr(file, "filename", file) or ""
        ) and "THEBE" not in str(body)

    for key in ("script_files", "css_files"):
        context[key][:] = [file for file in context[key] if kept(file)]


def setup(app):
    app.connect("config-inited", _configure, priority=100)
    app.connect("html-page-context", _drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
