"""The trainings of the papers, as time allows: `python -m tools.experiments [--minutes M] [chapter/part ...]`.

What is not on record yet is run by papermill, a part with one seed at a time, and its record goes to results/. First
come the first seeds, and of those what costs least for each claim. The time that is left is handed on, a stopped run
goes on with the same command (see `RESID_RUNS`), and what one part has trained another one does not train again.
`--list` shows what would be run, and runs nothing. `--reduced` does the same for what is asked at reduced scale: there
each CPU core has a seed of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from resid.book.experiments.parts import Part, chapters, foreign_recipes, parts_of, seeds_of
from resid.ledger import Claim, LedgerError, Record, get_claim, read_record, read_records, verdicts
from resid.training.cost import count_flops
from resid.training.ranks import usable_cpus
from resid.training.recipe import Recipe
from resid.training.recipes import IMAGENET_IMAGES
from resid.training.sweep import finished_runs, runs_folder
from resid.training.trainer import STOPPED
from tools.evidence import refuse_changes
from tools.notebooks import failure, papermill
from tools.paths import BUILD, ROOT

CIFAR_IMAGES = 50_000
RESULTS = ROOT / "results"
#: Lines of papermill that say nothing about a training.
CHATTER = re.compile(r"(Executing Cell|Ending Cell|Input Notebook|Output Notebook|<IPython|<Figure)")
#: Seconds under which nothing new is begun.
LEAST = 30.0
#: One record at a time goes to results/ and is judged beside the others.
KEEPING = threading.Lock()
#: Operations a second of one CPU core in the networks of the reduced scale, as measured; an estimate elsewhere.
CORE = 35e9


@dataclass(frozen=True)
class Piece:
    """A part with one seed, or, where it is `None`, with all of them, and the claims that it would settle.

    Args:
        trainings: those that are not finished, with the floating-point operations of each.
        why_not: what keeps it from being run here, "" if nothing does.
    """

    part: Part
    seed: int | None
    claims: tuple[Claim, ...]
    trainings: tuple[tuple[str, float], ...] = ()
    why_not: str = ""

    @property
    def flops(self) -> float:
        """Of all its trainings."""
        return sum(flops for _, flops in self.trainings)

    @property
    def name(self) -> str:
        """chapter/part, without the folder that all chapters share."""
        return name_of(self.part)

    @property
    def which(self) -> str:
        """Its name and its seed."""
        return f"{self.name}, {'all seeds' if self.seed is None else f'seed {self.seed}'}"

    def parameters(self, compute: str, at_once: int, nproc: int, seconds: float | None) -> dict[str, str]:
        """Of the notebook."""
        values = {"MODE": self.part.mode, "PART": self.part.name}
        if self.seed is not None:
            values |= {"SEEDS": "1", "SEED": str(self.seed), "NPROC": str(nproc), "AT_ONCE": str(at_once)}
            compute = compute_of(self.part, compute)
            values |= {"COMPUTE": compute} if compute else {}
        return values if seconds is None else values | {"MAX_SECONDS": f"{max(1.0, seconds):.0f}"}


def name_of(part: Part) -> str:
    """chapter/part, without the folder that all chapters share."""
    return f"{part.chapter.removeprefix('experiments/')}/{part.name}"


def on_record(records: Iterable[Record], mode: str = "full") -> dict[str, set[int]]:
    """The seeds that records of a mode have of each claim; of claims without seeds, an empty set."""
    found: dict[str, set[int]] = {}
    for record in records:
        for entry in record.entries if record.mode == mode else ():
            found.setdefault(entry.claim, set()).update(getattr(entry.evidence, "seeds", ()))
    return found


def plan(
    known: dict[str, set[int]],
    compute: str = "",
    names: Sequence[str] = (),
    cuda: bool | None = None,
    mode: str = "full",
) -> list[Piece]:
    """What is not on record, in the order in which it is to be run; what cannot be run here comes last.

    Args:
        known: see `on_record`.
        compute: see `Part.recipes`.
        names: of pieces, "procresnet_cifar/table-1"; default all.
        cuda: whether there is a GPU; default ask torch.
        mode: "full" or "reduced".
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    every = [part for chapter in chapters() for part in parts_of(chapter, mode).values()]
    if unknown := set(names) - set(map(name_of, every)):
        sys.exit(f"no part {', '.join(sorted(unknown))}: --list shows those that are not on record")
    pieces = []
    for part in every:
        if names and name_of(part) not in names:
            continue
        if not part.trains:
            lacking = tuple(c for c in part.claims if c.id not in known or not set(_seeds(c)) <= known[c.id])
            why_not = "needs a GPU" if part.needs_gpu and not cuda else ""
            pieces += [Piece(part, None, lacking, why_not=why_not)] if lacking else []
            continue
        for seed in part.seeds():
            lacking = tuple(c for c in part.claims if seed in seeds_of(c) and seed not in known.get(c.id, ()))
            if lacking:
                pieces.append(_piece(part, seed, lacking, compute))
    return sorted(pieces, key=lambda p: (bool(p.why_not), p.seed or 0, p.flops / len(p.claims)))


def compute_of(part: Part, compute: str) -> str:
    """How to compute a part: without the precision where its claims fix one."""
    return " ".join(w for w in compute.split() if not part.of_a_precision or not w.startswith("precision="))


def _seeds(claim: Claim) -> tuple[int, ...]:
    """None for what is counted and not measured."""
    return seeds_of(claim) if claim.kind == "experiment" else ()


def _piece(part: Part, seed: int, claims: tuple[Claim, ...], compute: str) -> Piece:
    recipes = part.recipes(compute_of(part, compute))
    wanted = {name: recipes[name] for claim in claims for name in claim.recipes}
    done = {name for name, _ in finished_runs(wanted, [seed])}
    trainings = tuple((name, _flops(recipe)) for name, recipe in wanted.items() if name not in done)
    streamed = any(recipe.streamed for recipe in wanted.values())
    why_not = "needs RESID_IMAGENET" if streamed and not os.environ.get("RESID_IMAGENET") else ""
    return Piece(part, seed, claims, trainings, why_not)


def _flops(recipe: Recipe) -> float:
    """Operations of a whole training, without its tests."""
    images = IMAGENET_IMAGES if recipe.streamed else recipe.train_images or CIFAR_IMAGES
    steps = recipe.total_steps(-(-images // recipe.batch))
    return float(steps) * recipe.batch * count_flops(recipe).training


def run(piece: Piece, parameters: dict[str, str], threads: int | None = None) -> str:
    """Run one piece with its output on the terminal and keep its record; returns "", or why there is none."""
    seed = "all" if piece.seed is None else piece.seed
    output = BUILD / piece.part.mode / f"{piece.part.chapter}-{piece.part.name}-{seed}.ipynb"
    given = [word for name, value in parameters.items() for word in ("-p", name, value)]
    source = ROOT / "book" / f"{piece.part.chapter}.ipynb"
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        arguments, environment = papermill(source, output, Path(folder), threads or usable_cpus(), given, timeout=None)
        output.unlink(missing_ok=True)
        tail: deque[str] = deque(maxlen=40)
        with subprocess.Popen(
            [*arguments, "--log-output"], env=environment, cwd=ROOT, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            for line in child.stdout:
                tail.append(line)
                if line.strip() and not CHATTER.match(line):
                    print(line, end="", flush=True)
        if child.returncode:
            done = subprocess.CompletedProcess(arguments, child.returncode, "", "".join(tail))
            why = failure(output, done).strip() or f"papermill ended with {child.returncode}"
            return textwrap.shorten(why.splitlines()[0], 400)  # all of it stands above
        with KEEPING:
            return keep(Path(folder))


def keep(folder: Path) -> str:
    """Copy the records of a folder to results/; returns why they do not fit beside those that are there, "" if they do.

    What does not fit is kept under _build/refused.
    """
    for source in sorted(folder.glob("*.json")):
        record = read_record(source)
        target = RESULTS / source.name
        before = target.read_bytes() if target.exists() else None
        shutil.copy(source, target)
        try:
            verdicts(RESULTS)
            for entry in record.entries:
                claim = get_claim(entry.claim) if record.mode == "full" else get_claim(entry.claim).at_reduced_scale
                if claim.recipes and (foreign := foreign_recipes(claim, entry.evidence)):
                    raise LedgerError(f"{entry.claim}: {foreign}")
        except LedgerError as error:
            refused = BUILD / "refused"
            refused.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, refused / source.name)
            if before is None:
                target.unlink()
            else:
                target.write_bytes(before)
            return f"its record does not fit beside the others and is kept in {refused}: {error}"
    return ""


def table(pieces: Sequence[Piece]) -> str:
    """The plan as text, and the operations of all trainings in it, each counted once."""
    lines = [f"{'part':36} {'seed':>4} {'claims':>6} {'PFLOP':>10}"]
    for p in pieces:
        seed = "all" if p.seed is None else str(p.seed)
        lines.append(f"{p.name:36} {seed:>4} {len(p.claims):6} {p.flops / 1e15:10,.1f}  {p.why_not}".rstrip())
    once = {(name, p.seed): flops for p in pieces for name, flops in p.trainings if not p.why_not}
    lines.append(f"{len(once)} trainings, some of which several parts share: {sum(once.values()) / 1e15:,.0f} PFLOP")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 if something failed, 75 if something is left for want of time."""
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="chapter/part", help="default all; procresnet_cifar/table-1, say")
    parser.add_argument("--list", action="store_true", help="show what is not on record, in order, and end")
    parser.add_argument("--minutes", type=float, help="save and stop after so long")
    parser.add_argument("--compute", default="", help='how to compute: "precision=bf16 channels_last=true", say')
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time on one GPU")
    parser.add_argument("--nproc", type=int, default=1, help="processes for a training, one for each GPU")
    parser.add_argument("--reduced", action="store_true", help="what is asked at reduced scale, on CPU cores")
    parser.add_argument("--dirty", action="store_true", help="accept uncommitted changes")
    given = parser.parse_args(arguments)

    mode = "reduced" if given.reduced else "full"
    cores = usable_cpus() if given.reduced else 1

    def todo() -> list[Piece]:
        return plan(on_record(read_records(RESULTS), mode), given.compute, given.parts, mode=mode)

    os.environ["RESID_RUNS"] = str(runs_folder().resolve())  # notebooks have working directories of their own
    if given.list:
        print(table(todo()))
        return 0
    refuse_changes(given.dirty)
    BUILD.mkdir(exist_ok=True)
    ends = math.inf if given.minutes is None else time.monotonic() + 60 * given.minutes
    failed: list[Piece] = []
    while pieces := [p for p in todo() if not p.why_not and p.which not in {q.which for q in failed}]:
        left = ends - time.monotonic()
        if left < LEAST:
            break
        seconds = None if math.isinf(left) else left
        # a seed for each core; parts that share trainings of a seed come one after the other
        several = [piece for piece in pieces if piece.part == pieces[0].part][:cores]
        for piece in several:
            takes = f", about {piece.flops / CORE / 60:.0f} minutes of a CPU core" if given.reduced else ""
            print(f"== {piece.which}: {len(piece.claims)} claims, {piece.flops / 1e15:,.1f} PFLOP{takes}", flush=True)

        def one(piece: Piece, seconds: float | None = seconds) -> str:
            parameters = piece.parameters(given.compute, given.at_once, given.nproc, seconds)
            return run(piece, parameters, 1 if given.reduced else None)

        with ThreadPoolExecutor(len(several)) as pool:
            reasons = list(pool.map(one, several))
        for piece, why in zip(several, reasons, strict=True):
            print(f"== {piece.which}: {why or 'on record'}", flush=True)
            if why and "UnfinishedError" not in why:
                failed.append(piece)
        if any("UnfinishedError" in why for why in reasons):
            break
    if pieces:
        print(f"{len(pieces)} pieces are left, and the same command goes on with them")
    print("now `make readme`, and commit results/ and README.md")
    if failed:
        print(f"failed: {'; '.join(p.which for p in failed)}", file=sys.stderr)
        return 1
    return STOPPED if pieces else 0


if __name__ == "__main__":
    sys.exit(main())
