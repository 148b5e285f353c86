"""State of a run on one rank: network, optimiser, batches and sums, and one step of training or a test with them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator
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
from resid.training.feeds import Feed, Source, open_source
from resid.training.ranks import Ranks
from resid.training.recipe import Recipe, build_network

__all__ = ["DivergedError", "Engine", "code_of_training", "numerics"]

NEVER = 2**62


class DivergedError(ResidError):
    """The loss is not finite any more: `step`, `epoch` and learning `rate` where that happened first."""

    def __init__(self, message: str, step: int, epoch: int, rate: float) -> None:
        super().__init__(message)
        self.step, self.epoch, self.rate = step, epoch, rate


@functools.cache
def code_of_training() -> str:
    """Hash the code that decides what a training comes out as: this module and what it imports."""
    return code_hash([Path(__file__)])[:16]


class Engine:
    """Network, optimiser, batches and sums of a run on this rank.

    The sums of the current epoch stay on the device; nothing waits for them until the epoch or a checkpoint asks.

    Args:
        recipe: what to train.
        ranks: this process among the others, and its device.
        data: folder of the data set, see `resid.training.feeds.open_source`.
        workers: processes that read image files for this rank.
        source: batches in place of those of the recipe.

    Raises:
        OptionError: the recipe does not suit the device.
        resid.data.official.DataFileError: the data are not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        data: str | Path | None = None,
        workers: int | None = None,
        source: Source | None = None,
    ) -> None:
        self.recipe, self.ranks, device = recipe, ranks, ranks.device
        if recipe.compile == "reduce-overhead" and device.type != "cuda":
            raise OptionError(f"compile = 'reduce-overhead' records CUDA graphs: not on {device}")
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
            devices = [device] if device.index is not None else None
            self.parallel = DistributedDataParallel(self.model, device_ids=devices)

        self.step, self.spent = 0, 0.0
        self.probed: dict[str, dict[str, float]] = {}  # what was probed in this epoch, as it stands in the metrics
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, wrong, seen
        self._bad, self._now = torch.tensor(NEVER, device=device), torch.tensor(0, device=device)
        self._begun = time.monotonic()
        #: of each line of metrics, so that a record can tell what made them
        self.made_by = {
            "ranks": ranks.count,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "code": code_of_training(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
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

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, but for the step; every rank has to call this.

        Raises:
            DivergedError: a loss since the last call was not finite.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "projection": self.projection.state_dict() if self.projection is not None else None,
            "sums": self._totals(),
            "spent": time.monotonic() - self._begun if self.step % self.training.steps else 0.0,
            "probed": self.probed,
        }

    def start_clock(self) -> None:
        """Note that training begins, or goes on, in an epoch."""
        self._begun = time.monotonic() - self.spent

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which the loop runs, once; compiled code has as many versions as there are shapes.

        What it leaves behind knows no other rank: see `resid.training.ranks.join_ranks`.
        """
        try:
            with many_versions() if self.recipe.compile != "no" else nullcontext():
                yield
        finally:
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
        """Compute gradients of the mean loss of a batch over all ranks, and add to the sums.

        Args:
            batch: this rank's share of it.
            probing: whether gradients of the blocks are measured, too.
        """
        usual = not probing and batch.size == self.recipe.batch
        scale = self.ranks.count / batch.size  # ranks are averaged, the last batch is smaller
        with self._probed(probing), self.eager(not usual):
            with self._autocast():
                logits = self.parallel(batch.images)
            smoothing = self.recipe.label_smoothing
            loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum", label_smoothing=smoothing)
            (loss * scale).backward()
            self._count(loss.detach(), logits.detach(), batch.labels)

    def update(self) -> None:
        """Take one step of the optimiser, with the projection that follows it.

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
        """Precision of forward passes."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def eager(self, wanted: bool) -> AbstractContextManager[Any]:
        """Run compiled blocks as written: for hooks, and for a batch of another size."""
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

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add samples of the current step to the sums: their loss, summed, and their logits.

        Labels below zero are those of files that cannot be read: no error, and not seen.
        """
        valid = labels >= 0
        self._sums += torch.stack([loss, ((logits.argmax(1) != labels) & valid).sum(), valid.sum()])
        self._bad.copy_(torch.where(torch.isfinite(loss), self._bad, self._bad.minimum(self._now)))

    def finish_epoch(self, epoch: int, rate: float) -> dict[str, Any]:
        """Test the network, and return the metrics of the epoch; the sums begin anew."""
        loss, wrong, seen = self._totals().tolist()
        seen = seen or math.nan  # no file could be read
        seconds = time.monotonic() - self._begun
        line = {
            "epoch": epoch + 1, "step": self.step, "loss": loss / seen, "train_error": wrong / seen,
            **self.test(self.testing, "test"), "lr": rate, "weight_norm": mean_weight_norm(self.model).item(),
            "seconds": seconds, "images_per_second": seen / seconds, **self.made_by,
        }  # fmt: skip
        if self.source.checking is not None and self.step == self.recipe.total_steps(self.training.steps):
            line |= self.test(self.source.checking, "plain_train")
        line |= self.probed
        self._sums.zero_()
        self.spent, self.probed = 0.0, {}
        return line

    @torch.no_grad()
    def test(self, batches: Feed, name: str) -> dict[str, float]:
        """Return loss and error over all batches and ranks, each sample once; of more than five classes top-5, too.

        Samples of broken files count neither as wrong nor as seen.

        Args:
            batches: to test on.
            name: in front of the names of the results, "test" for "test_loss".
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
        errors = {f"{name}_loss": total / seen, f"{name}_error": first / seen}
        return {**errors, f"{name}_top5_error": five / seen} if several else errors

    def _totals(self) -> Tensor:
        """Loss, wrong and seen over all ranks.

        Raises:
            DivergedError: a loss was not finite.
        """
        step = int(self.ranks.least(self._bad))
        if step < NEVER:
            epoch, rate = step // self.training.steps, self.recipe.rate(step, self.training.steps)
            text = f"the loss is not finite at step {step} (epoch {epoch}, learning rate {rate:.4g})"
            raise DivergedError(text, step, epoch, rate)
        return self.ranks.total(self._sums)


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


def many_versions() -> AbstractContextManager[Any]:
    """As many versions of compiled code as there are shapes; past eight of them torch goes back to eager code."""
    import torch._dynamo.config as dynamo  # which takes seconds

    fail = not dynamo.suppress_errors  # the two exclude each other
    patch: AbstractContextManager[Any] = dynamo.patch(recompile_limit=64, fail_on_recompile_limit_hit=fail)
    return patch


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


def _projection(recipe: Recipe, model: nn.Module) -> ProcrustesProjection | None:
    """The projection of the recipe, or None; the network is on the CPU still."""
    if not recipe.projects:
        return None
    if not isinstance(model, ProcResNet):
        raise OptionError(f"network = {recipe.network!r} has no layers to project")
    sizes = input_sizes(model, torch.zeros(1, *recipe.image_shape))
    linear = model.linear_convolutions()
    layers = [(module, sizes[name]) for name, module in model.named_modules() if any(module is c for c in linear)]
    every, probability = recipe.projection_every or 1, recipe.projection_probability
    coin, released = seed_of("projection", recipe.seed), recipe.projection == "released"
    return ProcrustesProjection(layers, every=every, probability=probability, seed=coin, released=released)
