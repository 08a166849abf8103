"""The training loop: epochs, looks at the accuracy, and networks that are done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invariance.core._errors import ModelError
from invariance.core._modules import clone
from invariance.core._rng import generator
from invariance.training._augmentation import Augmentation
from invariance.training._engine import BLOCK, TrainingEngine
from invariance.training._options import Options
from invariance.training._result import EpochRecord

#: Builds the engine for a set of networks, one a slot.
EngineMaker = Callable[[Sequence[nn.Module]], TrainingEngine]


@dataclass
class NetworkRun:
    """One network in training.

    Attributes:
        start: The module with its starting weights, never changed.
        seed: Seed of its order of the data.
        epochs: Epochs trained so far.
        history: What was seen so far.
        model: The trained module, once it is done.
        reached: Whether it reached the target.
        diverged: Whether it ended in NaN or infinity.
    """

    start: nn.Module
    seed: int
    epochs: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    model: nn.Module | None = None
    reached: bool = False
    diverged: bool = False

    def __post_init__(self) -> None:
        self.order = generator(self.seed, "order")


def train(
    runs: Sequence[NetworkRun],
    make_engine: EngineMaker,
    x: Tensor,
    y: Tensor,
    options: Options,
    *,
    slots: int,
    keep_diverged: bool,
    after_epoch: Callable[[], None],
) -> None:
    """Train ``runs`` in lockstep until each is done; fills them in.

    Shapes: ``x (n, d)``, ``y (n,)``.
    """
    active = list(runs)
    count = max(slots, len(active))
    padded = active + [active[0]] * (count - len(active))
    engine = make_engine([run.start for run in padded])
    n = len(y)
    full_batch = len(options.batches(n)) == 1
    augmentation = None
    if options.augmentation:
        augmentation = Augmentation(options.augmentation, x.shape[1], x.device, x.dtype)
    for epoch in range(1, options.max_epochs + 1):
        order = None if full_batch else _orders(active, count, n, y.device)
        view = None
        if augmentation is not None:
            seeds = [run.seed for run in active] + [active[0].seed] * (count - len(active))
            view = augmentation.draw(seeds, epoch, n)
        engine.run_epoch(order, options.rate(epoch), view)
        for run in active:
            run.epochs = epoch
        if epoch % options.check_every == 0 or epoch == options.max_epochs:
            _check(engine, active, epoch, x, y, options)
            if not keep_diverged:
                _refuse_diverged(active, epoch, options)
            for slot in reversed(range(len(active))):
                if active[slot].model is not None:
                    engine.move(len(active) - 1, slot)
                    active[slot] = active[-1]
                    active.pop()
            if max(slots, len(active)) < count:
                count = max(slots, len(active))
                engine.narrow(count)
        after_epoch()
        if not active:
            return


def _orders(active: Sequence[NetworkRun], count: int, n: int, device: torch.device) -> Tensor:
    """Draw each network's order on the CPU, so that it is the same on every device."""
    order = torch.empty((count, n), dtype=torch.int64)
    for slot, run in enumerate(active):
        torch.randperm(n, generator=run.order, out=order[slot])
    order[len(active) :] = order[0]
    return order.to(device)


def _check(
    engine: TrainingEngine,
    active: Sequence[NetworkRun],
    epoch: int,
    x: Tensor,
    y: Tensor,
    options: Options,
) -> None:
    """Look at every network; finish those that are done."""
    losses, counts = engine.evaluate()
    target = options.target_count(len(y))
    for slot, (run, loss, right) in enumerate(zip(active, losses, counts, strict=False)):
        value, correct = float(loss), int(right)
        run.diverged = not math.isfinite(value)
        if run.diverged or correct >= target or epoch == options.max_epochs:
            # What counts is the module that is handed back, not what the engine made of it.
            model = clone(run.start)
            engine.write(slot, model)
            value, correct = evaluate(model, x, y)
            run.reached = correct >= target
            run.diverged = not math.isfinite(value)
            if run.diverged or run.reached or epoch == options.max_epochs:
                run.model = model
        run.history.append(EpochRecord(epoch, value, correct / len(y)))


def _refuse_diverged(active: Sequence[NetworkRun], epoch: int, options: Options) -> None:
    seeds = [run.seed for run in active if run.diverged]
    if seeds:
        raise ModelError(
            f"Training diverged: by epoch {epoch} the train loss of {len(seeds)} of "
            f"{len(active)} running networks is NaN or infinite (seeds "
            f"{', '.join(map(str, seeds[:10]))}{', ...' if len(seeds) > 10 else ''}; "
            f"{options.optimizer}, lr = {options.lr:g}). Lower lr, or pass "
            "on_divergence='keep' to get such networks back as they are."
        )


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Return mean cross-entropy and number of points right, and leave ``model`` in eval mode.

    Shapes: ``x (n, d)``, ``y (n,)``.
    """
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(y), BLOCK):
        target = y[start : start + BLOCK]
        logits = model(x[start : start + BLOCK])
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        correct += int((logits.argmax(1) == target).sum())
    return loss / len(y), correct
