"""What the loop of the trainer is made of: the state of a run, when to stop, and the arithmetic in force."""

from __future__ import annotations

import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resid._closure import code_hash
from resid._precision import float32_products
from resid.data.batches import Batch, seed_of
from resid.errors import NotFiniteError, OptionError, ResidError
from resid.nets.norm_preservation import ProcrustesProjection, input_sizes
from resid.nets.preact import ProcResNet
from resid.nets.probes import blocks_of, mean_weight_norm, watch_gradients
from resid.training.checkpoint import RunFolder
from resid.training.feeds import Feed, Source, open_source
from resid.training.ranks import LAUNCHER, Ranks, under_torchrun
from resid.training.recipe import Recipe, build_network
from resid.training.step_graph import StepGraph

__all__ = ["DivergedError", "Engine", "Stop", "numerics"]

NEVER = 2**62


class DivergedError(ResidError):
    """The loss is not finite any more: `step`, `epoch` and learning `rate` where that happened first."""

    def __init__(self, message: str, step: int, epoch: int, rate: float) -> None:
        super().__init__(message)
        self.step, self.epoch, self.rate = step, epoch, rate


@functools.cache
def code_of_training() -> str:
    """A hash of the code that decides what a training comes out as: of this module and what it imports."""
    return code_hash([Path(__file__)])[:16]


class Engine:
    """Network, optimiser, batches and sums of a run on this rank.

    The sums of the current epoch stay on the device; nothing waits for them until the epoch or a checkpoint asks.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        folder: RunFolder,
        data: str | Path | None = None,
        workers: int | None = None,
        source: Source | None = None,
    ) -> None:
        self.recipe, self.ranks, self.folder, device = recipe, ranks, folder, ranks.device
        #: of each line of metrics, so that a record can tell what made them
        self.made_by = {"code": code_of_training(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        if recipe.compile == "reduce-overhead" and device.type != "cuda":
            raise OptionError(f"compile = 'reduce-overhead' records CUDA graphs: not on {device}")
        if recipe.graph and ranks.count > 1:
            raise OptionError(f"graph = True records the step of one process, and there are {ranks.count}")
        self.source = source = source or open_source(recipe, ranks, data, workers)
        self.training, self.testing = source.training, source.testing

        model = build_network(recipe)
        projection = _projection(recipe, model)
        self.model = model.to(device, memory_format=recipe.layout)  # type: ignore[call-overload]
        self.blocks = blocks_of(self.model)
        self.optimizer = _optimizer(recipe, self.model, device)
        self.projection = projection
        if projection is not None:
            projection.attach(self.optimizer)
        if recipe.compile != "no":
            torch.compiler.reset()  # versions of the blocks of another network would count towards the limit
            for block in self.blocks.values():  # each for its own shape, where torch would make one for all after two
                block.compile(mode=recipe.compile, dynamic=False)
        self.parallel: nn.Module = self.model
        if ranks.count > 1:
            self.parallel = DistributedDataParallel(
                self.model, device_ids=[device] if device.index is not None else None
            )

        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.step, self.spent = 0, 0.0
        self.probed: dict[str, dict[str, float]] = {}  # what was probed in this epoch, as it stands in the metrics
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, wrong, seen
        self._bad, self._now = torch.tensor(NEVER, device=device), torch.tensor(0, device=device)
        self._graph: StepGraph | None = None
        if recipe.graph:
            self._graph = StepGraph(self._differentiate, self.model.parameters(), device)
        self._saved = self._begun = time.monotonic()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the folder, if there is one."""
        state = self.folder.load(self.ranks.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # as it suits this device, not the one before
            group["fused"] = self.ranks.device.type == "cuda"
        if self.projection is not None:
            coin = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state["projection"].items()}
            self.projection.load_state_dict(coin)
        self.step, self.spent = state["step"], state["spent"]
        before = {"ratios": state["ratios"]} if state.get("ratios") else {}  # of version 0.1.0
        self.probed = state.get("probed", before)
        if self.ranks.first:  # the sums of all ranks
            self._sums.copy_(state["sums"])

    def save(self, behind: bool = False) -> None:
        """Write a checkpoint, `behind` in the background; every rank has to call this.

        Raises:
            DivergedError: a loss since the last one was not finite; nothing is written. CheckpointError: of the folder.
        """
        sums = self._totals()
        self._saved = time.monotonic()
        if not self.ranks.first:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "projection": self.projection.state_dict() if self.projection is not None else None,
            "sums": sums,
            "spent": self._clock(),
            "probed": self.probed,
        }
        (self.folder.save_behind if behind else self.folder.save)(self.step, state)

    def unsaved(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def start_clock(self) -> None:
        """Training begins, or goes on, in an epoch."""
        self._begun = time.monotonic() - self.spent

    def _clock(self) -> float:
        """Seconds of training in this epoch; none at its border."""
        return time.monotonic() - self._begun if self.step % self.training.steps else 0.0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """What the loop has to run in, once.

        What it leaves behind knows no other rank: see `resid.training.ranks.join_ranks`.
        """
        try:
            with (
                self._graph.stream() if self._graph is not None else nullcontext(),
                many_versions() if self.recipe.compile != "no" else nullcontext(),
            ):
                yield
        finally:
            self._graph = None  # it knows this engine: neither would be freed before garbage is collected
            self.parallel = self.model

    def set_rate(self) -> float:
        """Set the learning rate of this step, and return it; what compiled blocks gave in the last may go."""
        if self.recipe.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self._now.fill_(self.step)
        rate = self.recipe.rate(self.step, self.training.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def differentiate(self, batch: Batch, probing: bool) -> None:
        """Gradients of the mean loss of a batch over all ranks, and its sums; probing: ratios of the blocks, too."""
        usual = not probing and batch.size == self.recipe.batch
        if self._graph is not None and usual:
            self._graph(batch.images, batch.labels)
            return
        with self._probed(probing), self.eager(not usual):
            self._differentiate(batch.images, batch.labels, batch.size)

    def _differentiate(self, images: Tensor, labels: Tensor, size: int | None = None) -> None:
        """The same for this rank's share of a batch of `size` samples; default that of the recipe."""
        scale = self.ranks.count / (size or self.recipe.batch)  # ranks are averaged, the last batch is smaller
        for part, truth in self.parts(images, labels):  # whose gradients add up
            with self._autocast():
                logits = self.parallel(part)
            smoothing = self.recipe.label_smoothing
            loss = F.cross_entropy(logits.float(), truth, reduction="sum", label_smoothing=smoothing)
            (loss * scale).backward()
            self._count(loss.detach(), logits.detach(), truth)

    def update(self) -> None:
        """One step of the optimiser, with the projection that follows it.

        Raises:
            DivergedError: a kernel that is to be projected is not finite. The loss will not be, either.
        """
        try:
            self.optimizer.step()
        except NotFiniteError:
            self._bad.clamp_(max=self.step)
            self._totals()
            raise
        self.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def eager(self, wanted: bool) -> AbstractContextManager[Any]:
        """Compiled blocks run as written: for hooks, and for a batch of another size."""
        return torch.compiler.set_stance("force_eager") if wanted and self.recipe.compile != "no" else nullcontext()

    @contextmanager
    def _probed(self, wanted: bool) -> Iterator[None]:
        """Keep what is probed in the pass within, over all ranks."""
        if not wanted:
            yield
            return
        with watch_gradients(self.blocks) as probe:
            yield
        self.probed = {"ratios": probe.ratios(self.ranks.total(probe.squares()))}
        if branches := probe.branches(self.ranks.total(probe.signals().to(self.ranks.device))):
            self.probed["branches"] = branches

    def parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a batch in parts, as `Recipe.micro_batch` says; ranks exchange gradients in the last."""
        at_once = self.recipe.micro_batch or max(1, len(labels))
        several = list(zip(images.split(at_once), labels.split(at_once), strict=True))
        for part in several[:-1]:
            with self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else nullcontext():
                yield part
        yield several[-1]

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add samples of the current step to the sums: their loss, summed, and their logits.

        Labels below zero are those of files that cannot be read: no error, and not seen.
        """
        valid = labels >= 0
        self._sums += torch.stack([loss, ((logits.argmax(1) != labels) & valid).sum(), valid.sum()])
        self._bad.copy_(torch.where(torch.isfinite(loss), self._bad, self._bad.minimum(self._now)))

    def finish_epoch(self, epoch: int, rate: float) -> dict[str, Any]:
        """Test the network, and give the metrics of the epoch; the sums begin anew."""
        loss, wrong, seen = self._totals().tolist()
        seen = seen or math.nan  # no file could be read
        seconds = time.monotonic() - self._begun
        line = {
            "epoch": epoch + 1, "step": self.step, "loss": loss / seen, "train_error": wrong / seen,
            **self.test(self.testing, "test"), "lr": rate, "weight_norm": mean_weight_norm(self.model).item(),
            "seconds": seconds, "images_per_second": seen / seconds, "ranks": self.ranks.count,
            "device": self.device_name, **self.made_by,
        }  # fmt: skip
        if self.source.checking is not None and self.step == self.recipe.total_steps(self.training.steps):
            line |= self.test(self.source.checking, "plain_train")
        if broken := self.ranks.gather(self.source.broken()):
            line |= self.folder.note_broken(broken, self.ranks.first)
        line |= self.probed
        self._sums.zero_()
        self.spent, self.probed = 0.0, {}
        return line

    @torch.no_grad()
    def test(self, batches: Feed, name: str) -> dict[str, float]:
        """Loss and error over all batches and ranks, each sample once, and the top-5 error of more than five classes.

        Samples of broken files count neither as wrong nor as seen.
        """
        self.ranks.share_buffers(self.model)
        self.model.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.ranks.device)
        several = self.recipe.class_count > 5
        with self.eager(True):
            for images, labels, _ in batches.plain():
                with self._autocast():
                    logits = self.model(images)
                loss = F.cross_entropy(logits.float(), labels, reduction="sum")
                best = logits.topk(5 if several else 1, dim=1).indices
                wrong = (logits.argmax(1) != labels, (best != labels[:, None]).all(1))
                valid = labels >= 0
                sums += torch.stack([loss, *((w & valid).sum() for w in wrong), valid.sum()])
        self.model.train()
        total, first, five, seen = self.ranks.total(sums).tolist()
        seen = seen or math.nan
        found = {f"{name}_loss": total / seen, f"{name}_error": first / seen}
        return {**found, f"{name}_top5_error": five / seen} if several else found

    def _totals(self) -> Tensor:
        """Loss, wrong and seen over all ranks.

        Raises:
            DivergedError: a loss was not finite.
        """
        step = int(self.ranks.least(self._bad))
        if step < NEVER:
            self.folder.settle()
            epoch, rate = step // self.training.steps, self.recipe.rate(step, self.training.steps)
            found = self.folder.checkpoints()
            good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint"
            text = f"the loss is not finite at step {step} (epoch {epoch}, learning rate {rate:.4g}): {good}"
            raise DivergedError(text, step, epoch, rate)
        return self.ranks.total(self._sums)


def catch(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have SIGTERM and SIGINT handled, but for one that is ignored, as in the background of a shell; see `release`.

    Returns:
        What was there before, without what other programs than Python's have set, which cannot be set again.
    """
    mine = [name for name in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, handler) for name in mine}
    return {name: old for name, old in before.items() if old is not None}


def release(before: dict[int, Any]) -> None:
    """Put back what `catch` has replaced."""
    for name, handler in before.items():
        signal.signal(name, handler)


class Stop:
    """When to stop before the end: on SIGTERM or Ctrl-C, after `max_seconds`, or when torchrun or the launcher is gone.

    The signals are caught within the context, and only in the main thread, where Python allows it. A second Ctrl-C does
    not wait for the end of a step.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._signal, self._starter, self._parent = "", "", os.getppid()
        if under_torchrun():
            self._starter = "torchrun"
        elif LAUNCHER in os.environ:
            self._starter, self._parent = "the launcher", int(os.environ[LAUNCHER])
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = catch(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        release(self._before)

    def wish(self) -> str:
        """Why this process would stop, or ""."""
        if self._signal:
            return self._signal
        if self._end is not None and time.monotonic() >= self._end:
            return "max_seconds is over"
        return f"{self._starter} is gone" if self._starter and os.getppid() != self._parent else ""

    def agreed(self, ranks: Ranks, due: bool = False) -> tuple[str, bool]:
        """Why to stop, or "", and whether some rank finds something else due; all ranks have to ask."""
        mine = self.wish()
        stop, due = ranks.agree(bool(mine), due)
        return (mine or "another rank has to stop") if stop else "", due

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self._signal == signal.Signals.SIGINT.name:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name


@contextmanager
def numerics(precision: str, device: torch.device) -> Iterator[None]:
    """TF32 on GPUs only for the precision "tf32", and there the fastest convolutions; both are put back afterwards."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        with float32_products("tf32" if precision == "tf32" else "ieee"):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.SGD:
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[recipe.decay == "all" or id(parameter) in convolutions].append(parameter)
    return torch.optim.SGD(
        [{"params": p, "weight_decay": recipe.weight_decay * decays} for decays, p in groups.items() if p],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=device.type == "cuda",
    )


def many_versions() -> AbstractContextManager[Any]:
    """As many versions of compiled code as there are shapes; past eight of them torch goes back to eager code."""
    import torch._dynamo.config as dynamo  # which takes seconds

    fail = not dynamo.suppress_errors  # the two exclude each other
    patch: AbstractContextManager[Any] = dynamo.patch(recompile_limit=64, fail_on_recompile_limit_hit=fail)
    return patch


def _projection(recipe: Recipe, model: nn.Module) -> ProcrustesProjection | None:
    """The projection of the recipe, or None; the network is on the CPU still."""
    if recipe.projection_every is None and recipe.projection_probability is None:
        return None
    if not isinstance(model, ProcResNet):
        raise OptionError(f"network = {recipe.network!r} has no layers to project")
    sizes = input_sizes(model, torch.zeros(1, *recipe.image_shape))
    linear = model.linear_convolutions()
    layers = [(module, sizes[name]) for name, module in model.named_modules() if any(module is c for c in linear)]
    every, probability = recipe.projection_every or 1, recipe.projection_probability
    coin, released = seed_of("projection", recipe.seed), recipe.projection == "released"
    return ProcrustesProjection(layers, every=every, probability=probability, seed=coin, released=released)
