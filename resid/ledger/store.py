"""Record files: written whole or not at all, read whole or refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from resid._atomic import write_whole
from resid.ledger.catalog import schema
from resid.ledger.errors import RecordError
from resid.ledger.evidence import Evidence, from_json


@dataclass(frozen=True)
class Entry:
    """One piece of evidence in a record, with the claim's terms, its words and the judgement at the time of the run.

    words: statement and test, empty in records that are older than this field.
    """

    claim: str
    terms: dict[str, Any]
    evidence: Evidence
    passed: bool
    problems: tuple[str, ...]
    words: dict[str, str]


@dataclass(frozen=True)
class Record:
    """One run: where the file lies, what it says of the run (`info`), and its evidence."""

    path: Path
    info: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def mode(self) -> str:
        """ "smoke", "reduced" or "full"."""
        return self.info["mode"]


def record_name(chapter: str, mode: str, recipe: str | None, seeds: Sequence[int] = ()) -> str:
    """The file name of a record: one for each chapter, mode and recipe, and for each choice of seeds if some are given.

    Example:
        >>> record_name("norms/procrustes", "full", "figure-2", (10, 11))
        'norms-procrustes.full.figure-2.seeds-10-11.json'
    """
    chosen = "-".join(map(str, ("seeds", *seeds))) if seeds else None
    return ".".join(part for part in (chapter.replace("/", "-"), mode, recipe, chosen, "json") if part)


def name_of(content: dict[str, Any]) -> str:
    """The file name of a record with this content."""
    seeds = content["seeds"] if content.get("some_seeds") else ()
    return record_name(content["chapter"], content["mode"], content["recipe"], seeds)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record with its checksum, atomically: a reader sees the old file or the new one, never a part.

    Raises:
        RecordError: the content does not fit the schema.
        OSError: the disk refuses; the old file, if any, is untouched.
    """
    signed = {**content, "sha256": _checksum(content)}
    _validate(path, signed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(signed, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def read_record(path: Path) -> Record:
    """Read one record file.

    Raises:
        RecordError: not JSON (cut short, say), not of the schema, altered since it was written, renamed, or of a run
            that did not finish. The text names the file.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: cannot be read as a record: {error}") from error
    _validate(path, content)
    claimed = content.pop("sha256")
    if claimed != _checksum(content):
        raise RecordError(f"{path}: the content does not match its checksum: altered after the run; run it again")
    if not content["finished"]:
        raise RecordError(f"{path}: the run did not finish; run it again or remove the file")
    name = name_of(content)
    if path.name != name:
        raise RecordError(f"{path}: a record of this run is called {name}; a copy beside it would count twice")
    entries = tuple(
        Entry(e["claim"], e["terms"], from_json(e["evidence"]), e["passed"], tuple(e["problems"]), e.get("words", {}))
        for e in content.pop("evidence")
    )
    return Record(path, content, entries)


def read_records(folder: Path) -> tuple[Record, ...]:
    """Every record in a folder, by name. A folder that does not exist holds none.

    Raises:
        RecordError: anything in it is not a sound record; nothing is skipped but hidden files and README.md.
    """
    if folder.exists() and not folder.is_dir():
        raise RecordError(f"{folder}: a folder of records is needed")
    found = []
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith(".") or path.name == "README.md":
            continue
        if path.suffix == ".partial":
            raise RecordError(f"{path}: the run did not finish; run it again or remove the file")
        if path.suffix != ".json" or not path.is_file():
            raise RecordError(f"{path}: is no record and does not belong here")
        found.append(read_record(path))
    return tuple(found)


def _validate(path: Path, content: Any) -> None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema("record")).iter_errors(content))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "top level"
        raise RecordError(f"{path}: does not fit the record schema at {where}: {error.message[:300]}")


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
