"""Old names of modules, for one release: importing one gives the names of its successor, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

#: Old module -> where its public names are now.
MOVED = {
    "resid.lab": "resid.training",
    "resid.lab.audit": "resid.nets.auditing",
    "resid.lab.batches": "resid.data.batches",
    "resid.lab.checkpoint": "resid.training.checkpoint",
    "resid.lab.cli": "resid.training.cli",
    "resid.lab.cost": "resid.training.cost",
    "resid.lab.data": "resid.data",
    "resid.lab.descent": "resid.theory.shortcut",
    "resid.lab.experiment": "resid.training.sweep",
    "resid.lab.journal": "resid.book.journal",
    "resid.lab.launch": "resid.training.launcher",
    "resid.lab.official": "resid.data.official",
    "resid.lab.paper_recipes": "resid.training.recipes",
    "resid.lab.probes": "resid.nets.probes",
    "resid.lab.recipes": "resid.training.recipe",
    "resid.lab.three_layers": "resid.nets.three_layers",
    "resid.lab.train": "resid.training.trainer",
    "resid.nets.procrustes": "resid.nets.norm_preservation",
    "resid.theory.factor_lower_bound": "resid.theory.factor",
    "resid.theory.hessian": "resid.theory.shortcut",
    "resid.theory.memorize_exact": "resid.theory.memorize",
    "resid.theory.near_identity_flow": "resid.theory.norms",
    "resid.theory.orthonormal_taps": "resid.theory.procrustes",
    "resid.theory.polar": "resid.theory.procrustes",
    "resid.theory.procrustes_released": "resid.theory.procrustes",
    "resid.theory.projection": "resid.theory.memorize",
    "resid.theory.shortcut_zero": "resid.theory.shortcut",
    "resid.theory.smooth_maps": "resid.theory.norms",
}


class _Forward(Loader, MetaPathFinder):
    """Makes a module without code of its own for each old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for any other."""
        return ModuleSpec(fullname, self, is_package=fullname == "resid.lab") if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty module, as Python makes it."""

    def exec_module(self, module: ModuleType) -> None:
        """Send every question for a name on to the successor."""
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(f"{old} is now {new}; the old name goes with version 0.2", DeprecationWarning, stacklevel=2)
        successor = importlib.import_module(new)
        module.__dict__.update(
            __doc__=f"Now `{new}`.",
            __all__=list(getattr(successor, "__all__", [])),
            __getattr__=lambda name: getattr(successor, name),
            __dir__=lambda: dir(successor),
        )


def install() -> None:
    """Let Python find the old names; a second call changes nothing."""
    if not any(isinstance(finder, _Forward) for finder in sys.meta_path):
        sys.meta_path.append(_Forward())
