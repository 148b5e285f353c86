"""The tools that execute, stage and check the book."""

import shutil
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from resid._closure import _imports_of
from resid.ledger import catalog, verdicts
from tests.mutations import __main__ as mutations
from tests.mutations.catalogue import MUTATIONS
from tools import chapter, check, links, lint_notebooks, notebooks, quick, shown, site
from tools.paths import ROOT
from tools.repository import colab_link, set_address, setup_cell

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
FACTOR = ROOT / "book" / "linear" / "factor.ipynb"


def names(files):
    return {p.relative_to(ROOT).as_posix() for p in files}


def test_dependencies_are_followed_through_the_package():
    found = names(notebooks.dependencies("from resid.theory.factor import compose"))
    assert found == {
        "resid/__init__.py",
        "resid/__init__.pyi",
        "resid/_ambient.py",
        "resid/_arguments.py",
        "resid/_moved.py",
        "resid/errors.py",
        "resid/theory/__init__.py",
        "resid/theory/factor/__init__.py",
        "resid/theory/factor/_rotation.py",
        "resid/theory/factor/constructions.py",
        "resid/theory/factor/lower_bound.py",
    }
    assert "resid/book/kit.py" in names(notebooks.dependencies("from resid import book"))
    assert "resid/ledger/judge.py" in names(notebooks.dependencies("import resid.ledger"))
    assert notebooks.dependencies("import torch") == set()


def test_dependencies_are_followed_through_front_doors():
    """A name that a package imports when it is used counts as imported; a package that is imported whole, as all."""
    audit = names(notebooks.dependencies("from resid import audit"))
    assert {"resid/nets/auditing.py", "resid/theory/conv_spectrum/spectrum.py"} <= audit
    assert "resid/training/trainer.py" not in audit
    assert names(notebooks.dependencies("from resid.nets import ProcResNet")).isdisjoint({"resid/nets/auditing.py"})
    assert "resid/nets/preact.py" in names(notebooks.dependencies("from resid.nets import ProcResNet"))
    assert "resid/nets/auditing.py" in names(notebooks.dependencies("import resid.nets"))
    assert "resid/training/trainer.py" in names(notebooks.dependencies("import resid"))


def test_chapters_depend_on_what_they_use_and_no_more():
    factor = names(notebooks.dependencies(notebooks.code(FACTOR)))
    assert {"resid/theory/factor/constructions.py", "resid/book/checks/linear/factor.py", "resid/book/kit.py"} <= factor
    assert "resid/book/checks/linear/landscape.py" not in factor


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A little project with one module and one notebook, in place of this one."""
    (tmp_path / "resid").mkdir()
    (tmp_path / "resid" / "__init__.py").write_text("")
    (tmp_path / "resid" / "used.py").write_text("VALUE = 1\n")
    (tmp_path / "resid" / "unused.py").write_text("VALUE = 1\n")
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "notebooks.py").write_text("")
    (tmp_path / "book").mkdir()
    for module in (notebooks, site):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "EXECUTED", tmp_path / "_build" / "executed")
    monkeypatch.setattr(notebooks, "RECORDS", tmp_path / "_build" / "records")
    monkeypatch.setattr(notebooks, "__file__", str(tmp_path / "tools" / "notebooks.py"))
    _imports_of.cache_clear()
    yield tmp_path
    _imports_of.cache_clear()


def write(path, *sources, title="# Title"):
    cells = [new_markdown_cell(title, id="title")]
    cells += [new_code_cell(source, id=f"cell-number-{i}") for i, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
    return path


def test_only_what_matters_changes_a_fingerprint(project):
    path = write(project / "book" / "one.ipynb", "from resid.used import VALUE\nprint(VALUE)")
    first = notebooks.fingerprint(path)
    write(path, "from resid.used import VALUE\nprint(VALUE)", title="# Another title")
    assert notebooks.fingerprint(path) == first
    (project / "resid" / "unused.py").write_text("VALUE = 2\n")
    assert notebooks.fingerprint(path) == first
    (project / "resid" / "used.py").write_text("VALUE = 2\n")
    second = notebooks.fingerprint(path)
    assert second != first
    (project / "constraints.txt").write_text("torch==1\n")
    assert notebooks.fingerprint(path) not in (first, second)
    write(path, "from resid.used import VALUE\nprint(VALUE + 1)")
    assert notebooks.fingerprint(path) not in (first, second)


def test_a_new_record_changes_the_pages_that_show_verdicts(project):
    shows = [write(project / "book" / f"{name}.ipynb", f"{name}(1)") for name in ("verdicts", "paper_and_ours")]
    other = write(project / "book" / "other.ipynb", "my_verdicts = 1")
    before = [notebooks.fingerprint(path) for path in (*shows, other)]
    (project / "results").mkdir()
    (project / "results" / "new.json").write_text("{}")
    after = [notebooks.fingerprint(path) for path in (*shows, other)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_a_new_record_changes_the_end_of_its_own_chapter(project):
    (project / "book" / "part").mkdir()
    one, other = (write(project / "book" / "part" / f"{name}.ipynb", "book.finish()") for name in ("one", "other"))
    before = notebooks.fingerprint(one), notebooks.fingerprint(other)
    (project / "results").mkdir()
    (project / "results" / "part-one.full.some.json").write_text("{}")
    assert notebooks.fingerprint(one) != before[0]
    assert notebooks.fingerprint(other) == before[1]


LINES = "<pre>{}</pre>"
ROW = (
    "<table><tr><th>where</th><th>claim</th><th>verdict</th><th>quick check</th></tr>"
    "<tr><td>Table 1<br><code>a/b-1</code></td><td>The bound holds.</td><td>{}</td><td>{}</td></tr></table>"
)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (LINES.format("ok   a/b-1: 3 seeds"), True),
        (LINES.format("one\na/b-1 PASSED"), True),
        (LINES.format("a/b-1 not reproduced"), False),
        (LINES.format("a/b-1 reproduced"), True),
        ("<p>The claim a/b-1\nheld.</p>", True),
        ("<ul><li>a/b-1: passed</li></ul>", True),
        ("<table><tbody><tr><th>a/b-1</th><td>passed</td></tr></tbody></table>", True),
        ("<table><tr><td><pre>a/b-1</pre></td><td>passed</td></tr></table>", True),
        (LINES.format("quick check of a/b-1: 3 seeds"), False),
        (
            '<div class="cell_input docutils"><div>' + LINES.format('record("a/b-1", found.passed)') + "</div></div>",
            False,
        ),
        ('<div class="cell_input"><div></div></div><div>' + LINES.format("a/b-1 passed") + "</div>", True),
        (LINES.format("ok   a/b-1 (corrected): 3 cases"), False),
        (LINES.format("ok   a/b-12: 3 cases, and a/b-1.5 holds"), False),
        (LINES.format("ok   c/d: 3 cases\nquick check of a/b-1"), False),
        (ROW.format("not run", "quick check ran: wiring right"), False),
        (ROW.format("not run; held again in this build", ""), True),
        (ROW.format("not run", "\u2713"), True),
        (ROW.format("not run", "passed").replace("a/b-1", "a/c"), False),
    ],
)
def test_a_page_does_not_praise_what_has_no_verdict(page, problem):
    assert bool(shown.misleading(f"<html>{page}</html>", {"a/b-1"})) == problem


def test_the_built_site_is_read_page_by_page(tmp_path, monkeypatch):
    unsettled = next(name for name, found in verdicts().items() if found.verdict == "not run")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "page.html").write_text(f"<pre>ok   {unsettled}: 1 seeds</pre>")
    (tmp_path / "good.html").write_text(f"<pre>quick check of {unsettled}: 1 seeds</pre>")
    assert shown.problems(tmp_path) == (2, [f"part/page.html: ok   {unsettled}: 1 seeds"])
    monkeypatch.setattr(shown, "SITE", tmp_path)
    with pytest.raises(SystemExit, match="True"):
        shown.main()


def test_a_notebook_runs_once_and_again_when_its_module_changes(project):
    path = write(project / "book" / "one.ipynb", "from resid.used import VALUE", "VALUE + 40")
    assert notebooks.execute(path).startswith("  ran")
    assert notebooks.execute(path).startswith("  current")
    write(path, "from resid.used import VALUE", "VALUE + 40", title="# Edited text")
    assert notebooks.execute(path).startswith("  current")
    staged = nbformat.reads(site.with_outputs(path).decode(), as_version=4)
    assert staged.cells[0].source == "# Edited text"
    assert staged.cells[2].outputs[0].data["text/plain"] == "41"
    (project / "resid" / "used.py").write_text("VALUE = 2\n")
    assert notebooks.execute(path).startswith("  ran")
    staged = nbformat.reads(site.with_outputs(path).decode(), as_version=4)
    assert staged.cells[2].outputs[0].data["text/plain"] == "42"
    assert not nbformat.read(path, as_version=4).cells[2].outputs  # the source stays bare


def test_a_notebook_runs_again_when_its_cells_are_split_or_renamed(project):
    path = project / "book" / "one.ipynb"
    write(path, "x = 1\nx + 40")
    assert notebooks.execute(path).startswith("  ran")
    write(path, "x = 1", "x + 40")  # the same code, in two cells
    assert notebooks.execute(path).startswith("  ran")
    staged = nbformat.reads(site.with_outputs(path).decode(), as_version=4)
    assert staged.cells[2].outputs[0].data["text/plain"] == "41"
    bare = nbformat.read(path, as_version=4)
    bare.cells[2].id = "another-name"
    nbformat.write(bare, path)
    assert notebooks.execute(path).startswith("  ran")
    staged = nbformat.reads(site.with_outputs(path).decode(), as_version=4)
    assert staged.cells[2].outputs[0].data["text/plain"] == "41"


def test_every_page_is_written_anew_when_a_style_changes(project, monkeypatch):
    commands = []
    monkeypatch.setattr(site, "STAGE", project / "stage")
    monkeypatch.setattr(site, "SITE", project / "site")
    monkeypatch.setattr(site, "UNFINISHED", project / "_build" / "unfinished")
    monkeypatch.setattr(site.assets, "fetch", lambda _: None)
    monkeypatch.setattr(site.notebooks, "execute_all", lambda: None)
    monkeypatch.setattr(
        site.subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    (project / "_config.yml").write_text("execute: {}\n")
    (project / "_toc.yml").write_text("root: book/intro\nparts: []\n")
    (project / "book" / "intro.md").write_text("# Title\n")
    style = project / "book" / "_static" / "resid.css"
    style.parent.mkdir()
    (project / "scripts").mkdir()
    for content in ("a {}\n", "a {}\n", "b {}\n"):
        style.write_text(content)
        site.build()
    assert ["--all" in command for command in commands] == [True, False, True]


def test_a_failing_cell_is_named_and_tried_again(project):
    path = write(project / "book" / "one.ipynb", "x = 1", "assert x == 2, 'x is wrong'")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"(?s)one.ipynb failed.*cell cell-number-1: AssertionError: x is wrong"):
            notebooks.execute(path)


def broken(change):
    """The factor chapter with one defect."""
    notebook = nbformat.read(FACTOR, as_version=4)
    change(notebook)
    return notebook


def cell(notebook, tag):
    return next(c for c in notebook.cells if tag in c.metadata.get("tags", []))


def first_figure(notebook):
    return next(c for c in notebook.cells if "figure" in c.metadata.get("mystnb", {}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda n: n.cells[3].update(execution_count=3), "committed with outputs"),
        (lambda n: cell(n, "parameters").metadata.update(tags=[]), "0 cells have the tag 'parameters'"),
        (lambda n: n.cells[3].metadata.update(tags=["parameters"]), "2 cells have the tag 'parameters'"),
        (lambda n: n.cells[3].metadata.update(tags=["injected-parameters"]), "injected parameters"),
        (lambda n: cell(n, "parameters").update(source="MODE = 'smoke'"), "MODE and SEED"),
        (lambda n: cell(n, "setup").update(source="import resid"), "is not the setup cell"),
        (lambda n: n.cells[3].update(id=n.cells[4].id), "id of its own"),
        (lambda n: n.cells[3].update(id="8a6b4c2d"), "in words"),
        (lambda n: n.metadata.update(papermill={}), "metadata that tools leave behind: papermill"),
        (lambda n: n.metadata.kernelspec.update(name="ir"), "must be python3"),
        (lambda n: n.cells[0].update(source="No title"), "must be a title"),
        (lambda n: n.cells[0].update(source="# Title without a link"), "link to Colab"),
        (lambda n: first_figure(n).metadata.pop("mystnb"), "without a caption"),
        (lambda n: first_figure(n).metadata.mystnb.image.update(alt=""), "without a caption and an alternative text"),
        (lambda n: n.cells[3].update(source="x = 1  # " + "long " * 20), "columns"),
        (lambda n: n.cells[3].update(source="open('/home/somebody/x')"), "a path of one machine"),
        (lambda n: n.cells[3].update(source="'https://example.org'"), "names an address"),
    ],
)
def test_the_lint_finds_each_defect(monkeypatch, change, text):
    notebook = broken(change)
    monkeypatch.setattr(lint_notebooks.nbformat, "read", lambda *a, **k: notebook)
    assert any(text in problem for problem in lint_notebooks.problems(FACTOR)), lint_notebooks.problems(FACTOR)


def test_link_check_finds_what_is_missing(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<h1 id="here">x</h1><a href="../a.html">a</a>')
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#here">fine</a><a href="sub/b.html#gone">x</a><a href="c.html">x</a>'
        '<a href="https://example.org">outside</a><link rel="canonical" href="https://example.org/a.html">'
        '<script src="https://cdn.example.org/x.js"></script>'
    )
    count, found = links.problems(tmp_path)
    assert count == 7
    assert found == [
        "a.html: loads https://cdn.example.org/x.js from elsewhere",
        "a.html: sub/b.html#gone has no such place",
        "a.html: c.html does not exist",
    ]


def test_setting_the_address_changes_one_line(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr("tools.repository.ROOT", tmp_path)
    set_address("https://github.com/somebody/a-book")
    old, new = ((p / "_config.yml").read_text().splitlines() for p in (ROOT, tmp_path))
    assert [b for a, b in zip(old, new, strict=True) if a != b] == ["  url: https://github.com/somebody/a-book"]
    assert "git+https://github.com/somebody/a-book@v" in setup_cell()
    assert "github/somebody/a-book/blob/v" in colab_link(tmp_path / "book" / "x.ipynb")
    with pytest.raises(SystemExit, match="is not an address"):
        set_address("http://example.org")


def test_mutations_take_turns_and_have_controls():
    assert sorted(m.name for m in mutations.in_turn(MUTATIONS, 10**6 + 7)) == sorted(m.name for m in MUTATIONS)
    first = {mutations.in_turn(MUTATIONS, start)[0].name for start in range(len(MUTATIONS))}
    assert len(first) == len(MUTATIONS)
    controlled = set()
    for job in mutations.with_controls(MUTATIONS):
        if job.func is mutations.unbroken:
            assert job.keywords["what"] not in controlled
            controlled.add(job.keywords["what"])
        else:
            mutation = job.keywords["mutation"]
            assert {mutation.tests, mutation.chapter} - {""} <= controlled
    assert mutations.perform(mutations.with_controls(MUTATIONS), 0) == (0, 0)


def test_mutations_of_what_changed_come_first():
    few = MUTATIONS[:40]
    files = {few[17].file}
    ordered = mutations.nearest_first(few, files)
    near = [m for m in few if m.file == few[17].file]
    assert list(ordered[: len(near)]) == near
    assert sorted(m.name for m in ordered) == sorted(m.name for m in few)
    assert mutations.nearest_first(few, set()) == few
    assert all((ROOT / name).exists() or name for name in mutations.changed())


def test_a_commit_and_a_week_check_what_they_say(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(check.subprocess, "run", lambda command, **_: ran.append(command) or Done(command))

    class Done:
        def __init__(self, command):
            self.returncode = int(broken in command)

    def steps(*words):
        ran.clear()
        monkeypatch.setattr("sys.argv", ["check", *words])
        check.main()
        return {name for line in capsys.readouterr().out.splitlines() if line.startswith("== ") for name in [line[3:]]}

    broken = "nothing"
    assert {"lint", "types", "test", "book", "links", "browser", "mutations"} <= steps()
    assert ["make", "--no-print-directory", "test"] in ran
    assert any("--changed" in command for command in ran)
    assert {*check.STEPS, "twin"} <= steps("--all")
    assert ["make", "--no-print-directory", "test", "TESTS="] in ran
    assert not any("--changed" in command for command in ran)
    assert sum(len(check.STEPS[name]) for name in ("lint", "links")) == len(ran) if steps("lint", "links") else False
    assert "twin" in steps("twin")
    assert {name for line in check.ORDER for name in line} == {*check.STEPS, *check.ALL}
    with pytest.raises(SystemExit, match="no step nonsense"):
        steps("nonsense")
    broken = "tools.links"
    with pytest.raises(SystemExit):
        steps()
    assert not any("tests.mutations" in command for command in ran), "what comes after is not begun"
    assert "== links failed" in capsys.readouterr().out


def test_quick_finds_what_is_near(monkeypatch):
    theory, check_ = ROOT / "resid/theory/factor/lower_bound.py", ROOT / "resid/book/checks/linear/factor.py"
    assert quick.modules([theory, check_, FACTOR]) == {
        "resid.theory.factor.lower_bound",
        "resid.theory.factor",
        "resid.book.checks.linear.factor",
    }
    tests, chapters = quick.near([theory])
    assert ROOT / "tests/theory/test_factor.py" in tests
    assert ROOT / "tests/theory/test_conv_spectrum.py" not in tests
    assert FACTOR in chapters
    assert ROOT / "book/norms/conv_spectrum.ipynb" not in chapters
    assert quick.near([ROOT / "README.md"]) == ([], [])
    assert quick.near([FACTOR])[1] == [FACTOR]
    landscape = ROOT / "book/linear/landscape.ipynb"
    assert quick.near([theory, landscape])[1][0] == landscape, "what is worked on comes first"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the files that a new chapter touches."""
    for name in ("resid/ledger/claims", "resid/book/checks", "book/linear", "tests/checks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("_toc.yml", "book/api_trials.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(chapter, "ROOT", tmp_path)
    return tmp_path


def test_a_new_chapter_is_laid_out_whole(copied, monkeypatch):
    monkeypatch.setattr("sys.argv", ["chapter", "linear/new_thing"])
    monkeypatch.setattr("tools.chapter.colab_link", lambda path: colab_link(ROOT / path.relative_to(copied)))
    chapter.main()
    notebook = copied / "book/linear/new_thing.ipynb"
    monkeypatch.setattr("tools.lint_notebooks.colab_link", lambda path: colab_link(ROOT / path.relative_to(copied)))
    assert lint_notebooks.problems(notebook) == []
    claim = {c.id: c for c in catalog.claims(copied / "resid/ledger/claims/beyond.yaml")}["beyond/new-thing"]
    assert claim.chapter == "linear/new_thing"
    toc = (copied / "_toc.yml").read_text().splitlines()
    assert toc[toc.index("      - file: book/linear/new_thing") - 1].startswith("      - file: book/linear/")
    assert "resid.book.checks.linear.new_thing" in (copied / "book/api_trials.md").read_text()
    names = {}
    exec((copied / "resid/book/checks/linear/new_thing.py").read_text(), names)
    assert names["statement"](50).unfavourable(claim, "smoke") == []
    for given, text in (
        ("linear/new_thing", "is there already"),
        ("nowhere/x", "part one of linear, norms, samples"),
        ("linear/A", "NAME"),
    ):
        monkeypatch.setattr("sys.argv", ["chapter", given])
        with pytest.raises(SystemExit, match=text):
            chapter.main()
