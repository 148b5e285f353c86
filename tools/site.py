"""Build the book: execute what is not current, put the outputs into a staged copy of the sources, run Jupyter Book."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

from tools import assets, notebooks
from tools.paths import BUILD, ROOT, SITE, STAGE

#: There while a build is under way, and after one that did not end well.
UNFINISHED = BUILD / "site-unfinished"


def stage() -> set[Path]:
    """Copy the sources to the stage, notebooks with the outputs of their run; unchanged files keep their times.

    Returns the names of those that changed.
    """
    wanted: dict[Path, bytes] = {}
    for path in sorted([*(ROOT / "book").rglob("*"), *(ROOT / "scripts").iterdir()]):  # which a page shows
        if path.is_file() and not any(p.startswith(".") or p in ("__pycache__", "resid-results") for p in path.parts):
            wanted[path.relative_to(ROOT)] = path.read_bytes()
    for path in notebooks.notebooks():
        wanted[path.relative_to(ROOT)] = with_outputs(path)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    wanted[Path("_config.yml")] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    wanted[Path("_toc.yml")] = (ROOT / "_toc.yml").read_bytes()
    for path in sorted(STAGE.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(STAGE) not in wanted:
            path.unlink()
    changed = set()
    for name, content in wanted.items():
        target = STAGE / name
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            changed.add(name)
    return changed


def with_outputs(path: Path) -> bytes:
    """The source notebook with the outputs of its executed copy, matched by cell id."""
    source = nbformat.read(path, as_version=4)
    executed = nbformat.read(notebooks.output_of(path), as_version=4)
    outputs = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs[cell.id].outputs
            cell.execution_count = outputs[cell.id].execution_count
    return nbformat.writes(source).encode()


def build(everything: bool = False) -> None:
    """Execute, stage, build. Warnings are errors, and an error forgets the parsed pages, so that it shows again."""
    started = time.perf_counter()
    assets.fetch(assets.MATHJAX)
    print("notebooks", flush=True)
    notebooks.execute_all()
    changed = stage()
    everything |= any("_static" in name.parts for name in changed)  # pages name styles and scripts with a checksum
    everything |= UNFINISHED.exists()  # a build that was interrupted has written some pages with them
    UNFINISHED.touch()
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(STAGE), "--path-output", str(ROOT)]
    command += ["-W", "-n", "--keep-going", *(["--all"] if everything else [])]
    print("jupyter-book build", flush=True)
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "RESID_MATHJAX": str(assets.MATHJAX.folder), "NO_COLOR": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        told = [line for line in done.stdout.splitlines() if "WARNING" in line or "ERROR" in line]
        print(done.stdout[-4000:], *told, sep="\n")  # last what it was about, however long the rest
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        sys.exit("jupyter-book build failed: warnings are errors")
    UNFINISHED.unlink()
    print(f"built {SITE.relative_to(ROOT)}/index.html in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="write every page anew")
    build(parser.parse_args().all)


if __name__ == "__main__":
    main()
