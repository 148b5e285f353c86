"""What a run can say for or against a claim. Each kind knows how to judge itself by the margin fixed in the ledger.

Two kinds of trouble are kept apart. Evidence is *malformed* when it cannot be about the claim at all (a wrong kind, no
cases, values without seeds): that is an error whatever the mode. It is *unfavourable* when the claim does not hold.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, ClassVar

from resid.errors import OptionError
from resid.ledger.catalog import Claim

STATEMENTS = ("printed", "corrected", "sharper")
RELATIONS = ("<=", ">=", "==")


@dataclass(frozen=True)
class Cases:
    """Numerical verification of a theorem or identity over many instances.

    Args:
        n: instances tried.
        worst: the largest ratio (measured side over bounding side) or relative error, by the claim's `measure`; it must
            stay within the claim's limit.
        statement: one of `STATEMENTS`.
        what: the instances.
    """

    kind: ClassVar[str] = "cases"
    n: int
    worst: float
    what: str
    statement: str = "printed"

    def __post_init__(self) -> None:
        _coerce(self, n=_whole, worst=float)
        _check_option("statement", self.statement, STATEMENTS)

    def malformed(self, claim: Claim) -> list[str]:
        """Reasons why this cannot be evidence for the claim."""
        found = _not_experiment(self, claim) + _wrong_statement(self, claim)
        return found if self.n >= 1 else [*found, f"n = {self.n}: nothing was tried"]

    def unfavourable(self, claim: Claim, mode: str) -> list[str]:
        """Reasons why this fails the claim; empty when it passes."""
        found = []
        if mode == "full" and self.n < claim.cases:
            found.append(f"n = {self.n} < {claim.cases}, the number of cases fixed for a full run")
        if not 0 <= self.worst <= claim.limit:  # NaN fails too, and nothing that is measured is negative
            found.append(f"the worst {claim.measure} is {self.worst:.6g}, not between 0 and {claim.limit:.6g}")
        return found


@dataclass(frozen=True)
class Symbolic:
    """An identity shown by computer algebra.

    Args:
        holds: the difference of the two sides simplified to exactly zero.
        scope: for which sizes ("d = 2, depth <= 3").
        complete: the scope is everything the statement says; else it is shown beside the numerical verdict.
    """

    kind: ClassVar[str] = "symbolic"
    holds: bool
    scope: str
    complete: bool = False
    statement: str = "printed"

    def __post_init__(self) -> None:
        value: Any = self.holds
        if isinstance(value, str) or str(value) not in ("True", "False"):  # bool, NumPy's or SymPy's own
            raise OptionError(f"holds = {self.holds!r}: True or False is needed, the outcome of a comparison")
        _coerce(self, holds=bool)
        _check_option("statement", self.statement, STATEMENTS)

    def malformed(self, claim: Claim) -> list[str]:
        """Reasons why this cannot be evidence for the claim."""
        return _not_experiment(self, claim) + _wrong_statement(self, claim)

    def unfavourable(self, claim: Claim, mode: str) -> list[str]:
        """Reasons why this fails the claim; empty when it passes."""
        return [] if self.holds else [f"the identity does not hold for {self.scope}"]


@dataclass(frozen=True)
class Counterexample:
    """An instance in which a printed statement `lhs relation rhs` is false, by more than the margin.

    Args:
        lhs: the two sides, computed.
        rhs: the two sides, computed.
        relation: what the paper prints between them.
        what: the instance, in words.
        exact: both sides are rational numbers (int, Fraction, SymPy's) from exact arithmetic, and are compared exactly.
    """

    kind: ClassVar[str] = "counterexample"
    lhs: float | Fraction
    rhs: float | Fraction
    relation: str
    what: str
    exact: bool = False
    statement: str = field(default="printed", init=False)

    def __post_init__(self) -> None:
        number = _rational if self.exact else float
        _coerce(self, lhs=number, rhs=number)
        _check_option("relation", self.relation, RELATIONS)

    def malformed(self, claim: Claim) -> list[str]:
        """Reasons why this cannot be evidence against the claim."""
        found = _not_experiment(self, claim)
        if claim.sharper:
            found.append("the claim says that something sharper holds, so the printed statement is not refuted")
        return found

    def unfavourable(self, claim: Claim, mode: str) -> list[str]:
        """Reasons why this is no counterexample; empty when it is one."""
        left: Any = self.lhs
        right: Any = self.rhs
        gap = {"<=": left - right, ">=": right - left, "==": abs(left - right)}[self.relation]
        slack = 0.0 if self.exact else claim.margin * max(abs(left), abs(right))
        if gap > slack:  # false for NaN
            return []
        return [f"{float(left):.6g} {self.relation} {float(right):.6g} is not violated by more than {slack:.3g}"]


@dataclass(frozen=True)
class Seeds:
    """One measured number per seed, for an experiment.

    In full and in reduced mode any values are evidence, and the verdict says what they amount to; in smoke mode every
    value must clear the bar that the ledger fixes.
    """

    kind: ClassVar[str] = "seeds"
    values: Sequence[float]
    seeds: Sequence[int]
    what: str
    statement: str = field(default="printed", init=False)

    def __post_init__(self) -> None:
        _coerce(self, values=lambda v: tuple(map(float, v)), seeds=lambda v: tuple(map(_whole, v)))

    def malformed(self, claim: Claim) -> list[str]:
        """Reasons why this cannot be evidence for the claim."""
        if claim.kind != "experiment":
            return [f"the claim is of kind {claim.kind!r}: it takes Cases, Symbolic or Counterexample, not Seeds"]
        if not self.values or len(self.values) != len(self.seeds) or len(set(self.seeds)) != len(self.seeds):
            return [f"{len(self.values)} values for the seeds {list(self.seeds)}: one value for each of distinct seeds"]
        return []

    def unfavourable(self, claim: Claim, mode: str) -> list[str]:
        """Reasons why this fails the claim; in full and in reduced mode only what is no number at all."""
        runs = list(zip(self.seeds, self.values, strict=True))
        found = [f"the value of seed {seed} is {value}" for seed, value in runs if not math.isfinite(value)]
        if mode != "smoke":
            return found
        if claim.smoke is None:
            return [*found, "the ledger fixes no smoke bar for this experiment"]
        at_least, bar = claim.smoke.sense == "at-least", claim.smoke.value
        return found + [
            f"seed {seed}: {claim.smoke.what} is {value:.6g}, not {claim.smoke.sense} {bar:.6g}"
            for seed, value in runs
            if not (value >= bar if at_least else value <= bar)
        ]


Evidence = Cases | Symbolic | Counterexample | Seeds
KINDS: dict[str, type[Cases] | type[Symbolic] | type[Counterexample] | type[Seeds]] = {
    kind.kind: kind for kind in (Cases, Symbolic, Counterexample, Seeds)
}


def _not_experiment(evidence: Evidence, claim: Claim) -> list[str]:
    if claim.kind == "experiment":
        return [f"the claim is an experiment: it takes Seeds, not {type(evidence).__name__}"]
    return []


def _wrong_statement(evidence: Cases | Symbolic, claim: Claim) -> list[str]:
    if evidence.statement == "corrected" and not claim.correction:
        return ["the evidence is about a corrected statement, but the ledger has no correction"]
    if evidence.statement == "sharper" and not claim.sharper:
        return ["the evidence is about a sharper statement, but the ledger has none"]
    if evidence.statement == "printed" and claim.correction:
        return ["the ledger has a correction, so the printed statement takes a Counterexample only"]
    return []


def describe(evidence: Evidence, claim: Claim) -> str:
    """One line: what was tried, what came out, and the limit it had to keep to."""
    if isinstance(evidence, Cases):
        return f"{evidence.n} cases, worst {claim.measure} {evidence.worst:.6g} <= {claim.limit:.6g} ({evidence.what})"
    if isinstance(evidence, Symbolic):
        return f"computer algebra, {evidence.scope}: {'identical' if evidence.holds else 'not identical'}"
    if isinstance(evidence, Counterexample):
        sides = f"{float(evidence.lhs):.6g} {evidence.relation} {float(evidence.rhs):.6g}"
        return f"refuted, {sides} is false ({evidence.what})"
    runs = ", ".join(f"{value:.6g}" for value in evidence.values)
    return f"{len(evidence.seeds)} seeds: {runs} ({evidence.what})"


def to_json(evidence: Evidence) -> dict[str, Any]:
    """A JSON object that `from_json` turns back; what JSON lacks (NaN, infinities, fractions) becomes a string."""
    return {"kind": evidence.kind} | {f.name: _encode(getattr(evidence, f.name)) for f in fields(evidence)}


def from_json(content: dict[str, Any]) -> Evidence:
    """The evidence of a JSON object written by `to_json`; the record schema has been checked before."""
    kind = KINDS[content["kind"]]
    given = {f.name: content[f.name] for f in fields(kind) if f.init}
    if content["kind"] == Counterexample.kind and content["exact"]:
        given |= {side: Fraction(content[side]) for side in ("lhs", "rhs")}
    return kind(**given)


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if isinstance(value, Fraction) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _rational(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, numbers.Rational):
        raise OptionError(f"{value!r} is no rational number: exact=True compares ints and fractions without rounding")
    return Fraction(int(value.numerator), int(value.denominator))


def _whole(value: Any) -> int:
    """A whole number as an int: no truth value, no text, nothing between two numbers."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise OptionError(f"{value!r} is no whole number")
    return int(number)


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise OptionError(f"{name} = {value!r}: one of {', '.join(map(repr, options))} is needed")


def _coerce(evidence: Any, **types: Callable[[Any], Any]) -> None:
    """Plain Python numbers in place of tensors and NumPy scalars, so that a record can be written."""
    for name, make in types.items():
        object.__setattr__(evidence, name, make(getattr(evidence, name)))
