"""The claims of the papers, and what we ask beyond them, read from the folder claims and checked against a schema."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from resid.ledger.errors import LedgerError, UnknownClaimError

#: Key of the claims that no paper makes.
BEYOND = "beyond"
#: The files of the claims, in the order of the papers.
FILES = ("hardt_ma", "li", "zaeemzadeh", "beyond")
#: The places where a statement was read, namely a formula or a number of the text, a sentence, or the authors' released
#: code; and, last, a meaning that the available text does not fix, so that we had to choose one.
STATUSES = ("printed", "in words", "released code", "our reading")


@dataclass(frozen=True)
class Smoke:
    """What an experiment must show in smoke mode, for every seed."""

    sense: str
    value: float
    what: str


@dataclass(frozen=True)
class Reduced:
    """How an experiment is asked at a scale that two CPU cores manage, with what was fixed before the run.

    Args:
        part: what of the chapter is trained and recorded together.
        recipes: names of the recipes that are compared, in the order of the claim's test.
        scale: what was reduced, in words.
        sense: "at-least" or "at-most" the target, the value without an effect; or "equal" to it.
        target: see `sense`.
        margin: the effect that matters, or what counts as equal.
        seeds: how many.
        first_seed: number of the first of them.
        measure: what the number is; default that of the claim.
    """

    part: str
    recipes: tuple[str, ...]
    scale: str
    sense: str
    target: float
    margin: float
    seeds: int
    first_seed: int
    measure: str = ""


@dataclass(frozen=True)
class Claim:
    """One theorem, lemma, table row, figure or headline number of a paper.

    Args:
        id: "hardt-ma/theorem-2.1".
        where: the place in the paper.
        kind: "theorem", "identity" or "experiment".
        statement: in our words.
        status: one of `STATUSES`.
        printed: the printed number, if there is one, with `unit`.
        part: what of the chapter is trained and recorded together.
        recipes: names of the recipes that an experiment compares, in the order of its test.
        small: names of the recipes that stand in for them in smoke mode.
        correction: our corrected statement, where the printed one is false.
        sharper: what more holds, where the printed one is true and says less.
        chapter: the notebook that tests it.
        test: what is run.
        margin: fixed before the run.
        seeds: how many, fixed before the run.
        first_seed: number of the first of them.
        measure: of a theorem or an identity what the worst case is measured by, "ratio" or "error"; of an experiment
            with recipes a name of `resid.book.experiments.measures`.
        cases: of a theorem or an identity how many a full run needs.
        sense: of an experiment how the measured mean is compared with the target: "equal", "at-least" or "at-most".
        target: of an experiment what the measured mean is compared with; default the printed number.
        reduced: how it is asked at a reduced scale, if it is; see `at_reduced_scale`.
        smoke: what an experiment must clear in smoke mode, which checks its wiring and says nothing of the claim.
    """

    id: str
    where: str
    kind: str
    statement: str
    chapter: str
    test: str
    margin: float
    seeds: int
    printed: float | None = None
    unit: str = ""
    correction: str = ""
    sharper: str = ""
    status: str = "printed"
    first_seed: int = 0
    part: str = ""
    recipes: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    measure: str = ""
    cases: int = 1
    sense: str = "equal"
    target: float | None = None
    smoke: Smoke | None = None
    reduced: Reduced | None = None

    @property
    def paper(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]

    @property
    def terms(self) -> dict[str, Any]:
        """What was fixed before the run and decides the verdict; a record keeps a copy and is void if they change."""
        experiment = self.kind == "experiment"
        return {
            "margin": self.margin,
            "seeds": self.seeds,
            "measure": None if experiment else self.measure,
            "cases": None if experiment else self.cases,
            "sense": self.sense if experiment else None,
            "target": self.target if experiment else None,
        }

    @property
    def words(self) -> dict[str, str]:
        """What the claim says and how it is tested; a record keeps a copy, and the verdict tells of a change."""
        return {"statement": self.statement, "test": self.test}

    @property
    def fixed_seeds(self) -> range:
        """The seeds that were fixed before the run."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def at_reduced_scale(self) -> Claim:
        """The claim as it is asked at a reduced scale, with recipes, seeds and limits of its own and no printed number.

        Raises:
            LedgerError: it is not.
        """
        if self.reduced is None:
            raise LedgerError(f"{self.id}: the ledger does not say how it is asked at a reduced scale")
        of = self.reduced
        return dataclasses.replace(
            self, part=of.part, recipes=of.recipes, small=(), measure=of.measure or self.measure, sense=of.sense,
            target=of.target, margin=of.margin, seeds=of.seeds, first_seed=of.first_seed, printed=None, reduced=None,
        )  # fmt: skip

    @property
    def limit(self) -> float:
        """What the worst case of a theorem or identity may reach (1 + margin for a ratio, margin for an error)."""
        return 1 + self.margin if self.measure == "ratio" else self.margin


@dataclass(frozen=True)
class Paper:
    """One of the three papers: key of the claim ids, short name, and the key of its entry in references.bib.

    `BEYOND` has no such entry: its claims are expectations of our own, fixed before the runs like the others.
    """

    key: str
    name: str
    cite: str = ""


def claims(path: Path | None = None) -> tuple[Claim, ...]:
    """All claims, in the order of the papers.

    Args:
        path: one file instead of those in the package.

    Raises:
        LedgerError: the file does not fit the schema, or an id appears twice. The text names the entry.

    Example:
        >>> "hardt-ma/theorem-2.1" in {claim.id for claim in claims()}
        True
    """
    return _load(path)[1]


def papers(path: Path | None = None) -> tuple[Paper, ...]:
    """The papers, in their order."""
    return _load(path)[0]


def get_claim(claim_id: str) -> Claim:
    """The claim of that id.

    Raises:
        UnknownClaimError: there is none; the text names close ids.
    """
    known = {claim.id: claim for claim in claims()}
    if claim_id not in known:
        claim_id = str(claim_id)
        tail = claim_id.partition("/")[2]
        near = [other for other in known if tail and tail.split("-")[0] in other][:5]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UnknownClaimError(f"claim {claim_id!r} is not in the ledger{hint}")
    return known[claim_id]


def schema(name: str) -> dict[str, Any]:
    """A JSON schema of the ledger: "claims" or "record"."""
    return json.loads(resources.files("resid.ledger").joinpath(f"{name}.schema.json").read_text("utf-8"))


class _Strict(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and numbers that are not finite, which plain YAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = float(super().construct_yaml_float(node))
        if not math.isfinite(number):
            raise yaml.constructor.ConstructorError(None, None, f"{number} is no finite number", node.start_mark)
        return number


_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_yaml_float)


@functools.cache
def _load(path: Path | None) -> tuple[tuple[Paper, ...], tuple[Claim, ...]]:
    folder = resources.files("resid.ledger").joinpath("claims")
    names: list[Paper] = []
    entries: list[Claim] = []
    for source in [folder.joinpath(f"{name}.yaml") for name in FILES] if path is None else [path]:
        content = _read(source)
        keys = {paper["key"] for paper in content["papers"]}
        for entry in map(_claim, content["claims"]):
            if any(entry.id == other.id for other in entries):
                raise LedgerError(f"{source}: the id {entry.id!r} appears twice")
            if entry.paper not in keys:
                raise LedgerError(f"{source}: no paper has the key {entry.paper}")
            entries.append(entry)
        names += [Paper(**paper) for paper in content["papers"]]
    return tuple(names), tuple(entries)


def _read(source: Any) -> dict[str, Any]:
    """The content of a file of claims that fits the schema."""
    try:
        content: dict[str, Any] = yaml.load(source.read_text("utf-8"), Loader=_Strict)
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"{source} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise LedgerError(f"{source} is not YAML: {error}") from error
    validator = jsonschema.Draft202012Validator(schema("claims"))
    if problems := sorted(validator.iter_errors(content), key=lambda e: list(map(str, e.path))):
        listed = "\n".join(_explain(content, e) for e in problems[:10])
        raise LedgerError(f"{source} does not fit its schema:\n{listed}")
    return content


def _claim(entry: dict[str, Any]) -> Claim:
    fields = dict(entry)
    printed = fields.pop("printed", None) or {}
    smoke = fields.pop("smoke", None)
    reduced = fields.pop("reduced", None)
    if reduced:
        reduced = {**reduced, "recipes": tuple(reduced["recipes"]), "scale": " ".join(reduced["scale"].split())}
    if "target" not in fields and printed:
        fields["target"] = printed["value"]
    fields = {k: " ".join(v.split()) if isinstance(v, str) else v for k, v in fields.items()}
    fields |= {name: tuple(fields[name]) for name in ("recipes", "small") if name in fields}
    return Claim(
        **fields,
        printed=printed.get("value"),
        unit=printed.get("unit", ""),
        smoke=Smoke(**smoke) if smoke else None,
        reduced=Reduced(**reduced) if reduced else None,
    )


def _explain(content: Any, error: jsonschema.ValidationError) -> str:
    path = list(error.absolute_path)
    where = "/".join(map(str, path))
    if len(path) >= 2 and path[0] == "claims":
        entry = content["claims"][path[1]]
        where = f"{entry.get('id', path[1]) if isinstance(entry, dict) else path[1]} ({where})"
    return f"  {where or 'top level'}: {error.message[:300]}"
