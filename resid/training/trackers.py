"""Where metrics go besides metrics.jsonl: anything with `log` and `close`; adapters for three well-known trackers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from resid._arguments import check_option
from resid.errors import OptionError
from resid.training.recipe import Recipe

__all__ = ["Tracker", "open_tracker"]


class Tracker(Protocol):
    """What `resid.training.trainer.train` calls after each epoch, and its owner at the end."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of an epoch."""

    def close(self) -> None:
        """Write what is left."""


class _TensorBoard:
    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self._writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(run_dir / "tensorboard"))
        self._writer.add_text("recipe", recipe.to_json())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        options = {"dir": str(run_dir), "id": recipe.hash, "resume": "allow", "config": {"recipe": recipe.to_json()}}
        self._run = _module("wandb", "wandb").init(project="resid", **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self._mlflow = _module("mlflow", "mlflow")
        self._mlflow.start_run(run_name=recipe.hash)
        self._mlflow.set_tag("recipe", recipe.to_json())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[Recipe, Path], Any]] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}


def open_tracker(name: str, recipe: Recipe, run_dir: str | Path) -> Tracker:
    """A tracker of the given kind; its package is imported here and nowhere else.

    Args:
        name: "tensorboard", "wandb" or "mlflow". recipe, run_dir: of the run.

    Raises:
        OptionError: unknown name, or its package is not installed.
    """
    check_option("name", name, TRACKERS)
    tracker: Tracker = TRACKERS[name](recipe, Path(run_dir))
    return tracker


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(f"tracker {package!r}: its package is not installed, pip install {package}") from error
