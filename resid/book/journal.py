"""Long work in pieces that are kept: a piece that was computed by the same code is not computed again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resid._atomic import write_whole
from resid._closure import code_hash
from resid.errors import OptionError

__all__ = ["Journal", "cache_folder"]


def cache_folder() -> Path:
    """Where kept pieces lie: `RESID_CACHE`, else the user's cache folder (~/.cache/resid, or below XDG_CACHE_HOME)."""
    wish = os.environ.get("RESID_CACHE")
    return Path(wish) if wish else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resid"


class Journal:
    """Keeps the results of named pieces of work on disk, so that an interrupted run goes on where it stopped.

    A piece is known by its key and by a hash of the code it depends on, of the versions of torch and Python and of the
    kind of device: change any of them and it is computed anew. Files are written whole or not at all, and one that was
    damaged is not read: it carries a checksum.

    Args:
        name: folder below `cache_folder`.
        sources: modules, or paths of files, whose code matters, with all of this package that they import.
        folder: instead of `cache_folder`; None keeps pieces in memory only.
        say: called with a line for each piece.

    Example:
        >>> Journal("example", (), folder=None)({"n": 3}, lambda: {"square": np.array(9)})["square"].item()
        9
    """

    def __init__(
        self,
        name: str,
        sources: tuple[Any, ...],
        folder: Path | str | None = "default",
        say: Callable[[str], None] | None = None,
    ) -> None:
        if not name or Path(name).name != name:
            raise OptionError(f"name = {name!r}: the name of a folder is needed")
        base = cache_folder() if folder == "default" else folder
        self.folder = None if base is None else Path(base) / name
        self.say = say
        where = f"{sys.version_info[:2]} {torch.__version__} {platform.machine()}"
        self._code = f"{where} {code_hash(Path(getattr(source, '__file__', source)) for source in sources)}"
        self._memory: dict[str, dict[str, np.ndarray]] = {}
        self.reused = self.computed = 0

    def __call__(
        self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays of a piece, computed unless they are kept.

        Args:
            key: what the piece is, in JSON types.
            compute: called without arguments when it has to be computed.

        Raises:
            TypeError: the key is not JSON.
        """
        text = json.dumps(key, sort_keys=True)
        if text in self._memory:
            return self._memory[text]
        path = self._path(text)
        if path is not None and path.exists():
            found = _read(path)
            if found is None:
                path.unlink()  # half a file, or one in which a bit is another: as if there were none
            else:
                self.reused += 1
                self._memory[text] = found
                return found
        result = {name: np.asarray(value) for name, value in compute().items()}
        self.computed += 1
        self._memory[text] = result
        if self.say is not None:
            self.say(text)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **result)
            write_whole(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
        return result

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        """Whether a piece is kept."""
        text = json.dumps(key, sort_keys=True)
        path = self._path(text)
        return text in self._memory or (path is not None and path.exists())

    def _path(self, text: str) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{hashlib.sha256((self._code + text).encode()).hexdigest()[:32]}.npz"


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file: a SHA-256 of 32 bytes and what it is of, an archive of NumPy. None if it is not whole."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        return None
    with np.load(io.BytesIO(stored[32:]), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
