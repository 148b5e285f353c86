"""The project's files agree with each other: addresses, versions, dependencies, layers, and what must not be there."""

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from datetime import datetime

import pytest
import yaml
from packaging.requirements import Requirement

from resid import __version__
from resid.book.experiments.parts import foreign_recipes
from resid.ledger import Seeds, claims, get_claim, read_records
from tests.mutations.catalogue import MUTATIONS
from tools.bootstrap import torch_source
from tools.lint_notebooks import problems
from tools.notebooks import code, in_toc, notebooks
from tools.paths import ROOT
from tools.readme import with_scoreboard
from tools.repository import address, rewritten, setup_cell, version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked():
    """Files of the project, as git sees them (tracked, or new and not ignored)."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def imports_of(path):
    """Top-level and nested `resid` imports of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{a.name}" for a in node.names)


ALLOWED = {  # what a package of resid may import from resid, besides itself and resid.errors
    "theory": set(),
    "nets": {"theory"},
    "data": set(),
    "training": {"theory", "nets", "data"},
    "ledger": set(),
    "book": {"theory", "nets", "data", "training", "ledger"},
}
GROUND = {
    "errors",
    "_ambient",
    "_atomic",
    "_arguments",
    "_closure",
    "_moved",
    "_precision",
}  # what every package may use


def test_layers_import_only_what_is_below_them():
    for path in (ROOT / "resid").rglob("*.py"):
        parts = path.relative_to(ROOT / "resid").parts
        names = {n for n in imports_of(path) if n.startswith(("tests", "tools", "benchmarks"))}
        assert not names, f"{path}: imports {names}"
        if len(parts) == 1:
            continue
        used = {n.split(".")[1] for n in imports_of(path) if n.startswith("resid.")}
        extra = used - ALLOWED[parts[0]] - {parts[0]} - GROUND
        assert not extra, f"{path.relative_to(ROOT)} imports resid.{extra}"


def test_modules_stay_small():
    for path in (ROOT / "resid").rglob("*.py"):
        most = 500 if "checks" in path.parts else 400
        assert len(path.read_text().splitlines()) <= most, path.relative_to(ROOT)


def test_environment_yml_says_nothing_that_pyproject_does_not():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(content) == {"name", "channels", "dependencies"}
    assert content["channels"] == ["conda-forge"]
    python, pip, inner = content["dependencies"]
    assert pip == "pip"
    assert inner == {"pip": ["-e .[book,run,lab]"]}
    minor = re.fullmatch(r"python=(3\.\d+)", python)[1]
    assert f"Programming Language :: Python :: {minor}" in PROJECT["classifiers"]
    binder = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    assert binder["dependencies"][:2] == content["dependencies"][:2]


@pytest.mark.parametrize("name", ["environment.yml", ".binder/environment.yml"])
def test_an_environment_installs_what_lies_where_it_says(name):
    """conda and mamba run pip in the folder of the file."""
    content = yaml.safe_load((ROOT / name).read_text())
    assert content["dependencies"][:2] == yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][:2]
    (line,) = (word for word in content["dependencies"][2]["pip"] if word.startswith("-e "))
    place, extras = re.fullmatch(r"-e (\.+)\[([a-z,]+)\]", line).groups()
    assert ((ROOT / name).parent / place / "pyproject.toml").resolve() == ROOT / "pyproject.toml"
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_conda_way_brings_what_the_readme_then_calls():
    (line,) = (t for t in (ROOT / "README.md").read_text().splitlines() if "conda env create" in t)
    assert "jupyter lab" in line
    inner = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][2]["pip"][0]
    extras = re.search(r"\[([a-z,]+)\]", inner)[1].split(",")
    needed = [Requirement(t).name for extra in extras for t in PROJECT["optional-dependencies"][extra]]
    assert "jupyterlab" in needed


def test_what_torch_warns_of_itself_is_not_shown_in_a_notebook():
    """torch.func.hessian imports at its first call what some versions of torch warn of, each with other words."""
    code = "import torch, resid.book.checks; torch.func.hessian(lambda x: (x**2).sum())(torch.ones(2))"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_constraints_fit_the_requirements():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        pins[requirement.name.lower().replace("_", "-")] = specifier.version
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for text in itertools.chain.from_iterable(groups):
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} has no constraint"
        assert requirement.specifier.contains(pins[name]), f"{name}: {pins[name]} does not fit {text}"
    assert "jupyter-book>=1.0.4.post1,<2" in PROJECT["optional-dependencies"]["book"]


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == version() == __version__
    assert f"@v{version()}" in setup_cell()


def test_the_address_stands_in_config_alone():
    name = address().removeprefix("https://github.com/")
    for path in tracked():
        if path.name == "_config.yml" or path.suffix in (".svg", ".inv", ".png", ".npz"):
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            continue
        assert name not in text, f"{path.relative_to(ROOT)} repeats the repository's address"


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_setup_cells_are_written_from_config(path):
    assert path.read_text("utf-8") == rewritten(path), "run `make repository`"


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.stem)
def test_notebooks_have_the_form(path):
    assert problems(path) == []


def test_every_notebook_and_page_is_in_the_book():
    there = {p for p in (ROOT / "book").rglob("*") if p.suffix in (".ipynb", ".md")}
    assert there == set(in_toc())


def test_readme_scoreboard_is_what_the_ledger_says():
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == with_scoreboard(text), "run `make readme`"


def test_readme_commands_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`?\bmake ([a-z]+)\b", text):
        assert target in targets | {"and"}, target
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


def test_every_claim_of_a_written_chapter_is_tested():
    """Theorems and identities are on record. An experiment may wait for its full run, not for its smoke run.

    Ids may stand in the chapter's code or in that of its trials; those made of pieces are seen in the smoke records.
    """
    written = {p.relative_to(ROOT / "book").with_suffix("").as_posix(): p for p in notebooks()}
    recorded = {e.claim for r in read_records(ROOT / "results") for e in r.entries}
    for claim in claims():
        if claim.chapter not in written or claim.id in recorded:
            continue
        assert claim.kind == "experiment", f"{claim.id} is not on record"
        texts = [code(written[claim.chapter]), *(p.read_text() for p in (ROOT / "resid" / "book").rglob("*.py"))]
        named = any(claim.id in text or f'"{claim.id.partition("/")[2]}"' in text for text in texts)
        assert named or ("run_parts(" in texts[0] and claim.recipes), claim.id
        assert claim.smoke is not None, f"{claim.id} has no bar for its smoke run"


def test_every_mutation_finds_its_passage():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names))
    stale = [m.name for m in MUTATIONS if (ROOT / m.file).read_text("utf-8").count(m.old) != 1 or m.old == m.new]
    assert stale == []
    for mutation in MUTATIONS:
        assert (ROOT / mutation.tests).exists()
        assert not mutation.chapter or (ROOT / "book" / f"{mutation.chapter}.ipynb").exists()


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)


def test_records_are_younger_than_their_commit_which_is_part_of_this_history():
    assert git("rev-parse", "--is-shallow-repository").stdout == "false\n", "fetch the whole history"
    for record in read_records(ROOT / "results"):
        commit = record.info["commit"]
        assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, (record.path.name, commit)
        made = datetime.fromisoformat(git("show", "-s", "--format=%cI", commit).stdout.strip())
        assert made <= datetime.fromisoformat(record.info["started"]), record.path.name


def test_records_of_trainings_are_of_the_recipes_that_their_claims_name():
    trained = 0
    for record in read_records(ROOT / "results"):
        for entry in record.entries:
            claim = get_claim(entry.claim)
            claim = claim.at_reduced_scale if record.mode == "reduced" else claim
            if claim.recipes and isinstance(entry.evidence, Seeds):
                trained += 1
                assert foreign_recipes(claim, entry.evidence) == "", claim.id
    assert trained >= 3


def test_records_come_from_committed_code():
    for record in read_records(ROOT / "results"):
        assert record.info["dirty"] is False, record.path.name
        assert record.info["commit"], record.path.name
        assert not re.search(r"(^|[\s=])[/~]", record.info["command"]), record.info["command"]  # no path of a machine


def test_no_path_of_a_machine_and_no_foreign_word():
    words = re.compile(r"/(home|root|work|mnt)/[a-z]|\bthis session\b|\bas an ai\b|lorem ipsum", re.IGNORECASE)
    own = {
        ROOT / name for name in ("tests/book/test_project.py", "tests/book/test_tools.py", "tools/lint_notebooks.py")
    }
    for path in tracked():
        if path in own or path.suffix in (".svg", ".inv", ".npz"):
            continue
        found = words.search(path.read_text("utf-8"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0]!r}"


def test_no_large_file():
    for path in tracked():
        assert path.stat().st_size < 4 << 20, path


def test_notebooks_are_plain_json_with_a_newline():
    for path in notebooks():
        text = path.read_text("utf-8")
        assert text.endswith("}\n")
        assert json.loads(text)["nbformat"] == 4


def test_torch_source_follows_the_wish(monkeypatch):
    monkeypatch.setenv("TORCH", "cuda")
    assert torch_source() == []
    monkeypatch.setenv("TORCH", "gpu")
    with pytest.raises(SystemExit, match="TORCH=gpu: auto, cpu or cuda"):
        torch_source()
    monkeypatch.setenv("TORCH", "cpu")
    monkeypatch.setattr("tools.bootstrap.platform.system", lambda: "Linux")

    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("tools.bootstrap.urllib.request.urlopen", refuse)
    assert torch_source() == []
