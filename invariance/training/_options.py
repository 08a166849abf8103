"""How a network is trained: one validated, immutable bundle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from invariance.core._errors import UsageError, unknown_name

OPTIMIZERS = ("sgd", "adam")
AUGMENTATIONS = ("shift", "flip", "rotate")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        networks: How many networks are trained in all.
        finished: How many are done.
        reached: How many of these reached the target accuracy.
        train_accuracy: Mean over networks of the accuracy last looked at; 0 before.
    """

    networks: int
    finished: int
    reached: int
    train_accuracy: float


#: ``progress(done_epochs, total_epochs, info)``, called after every epoch. Epochs are
#: summed over the networks; one that stops early counts all of its epochs as done.
ProgressCallback = Callable[[int, int, TrainingProgress], object]


@dataclass(frozen=True)
class Options:
    """Everything but the model, the data and the seed that decides a training run.

    Attributes:
        lr: Learning rate.
        batch_size: Points a step; ``None`` for all. A last short batch is kept.
        max_epochs: Passes over the training set, at most.
        target_accuracy: Training stops once this share of the training points is
            classified correctly in eval mode; ``None`` to run all epochs.
        optimizer: ``"sgd"`` or ``"adam"``.
        momentum: SGD's momentum (``torch.optim.SGD``'s form, no dampening).
        weight_decay: L2 penalty added to the gradient of every parameter.
        betas: Adam's decay rates.
        eps: Adam's addition to the denominator.
        lr_drop_at: Share of ``max_epochs`` after which the rate is multiplied by
            ``lr_drop_factor``; ``None`` for a constant rate.
        lr_drop_factor: See ``lr_drop_at``.
        check_every: Epochs between looks at train loss and accuracy; the last epoch is
            always looked at.
        sam_rho: Radius of sharpness-aware minimisation; 0 for none.
        sam_adaptive: Whether that radius is relative to the weights (adaptive SAM).
        sam_eta: What adaptive SAM adds to the weights' size.
        augmentation: Random changes of training images.
    """

    lr: float = 0.1
    batch_size: int | None = 64
    max_epochs: int = 500
    target_accuracy: float | None = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr_drop_at: float | None = None
    lr_drop_factor: float = 0.1
    check_every: int = 1
    sam_rho: float = 0.0
    sam_adaptive: bool = False
    sam_eta: float = 0.0
    augmentation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        _number("lr", self.lr, lambda v: v > 0, "positive")
        _number("weight_decay", self.weight_decay, lambda v: v >= 0, "0 or more")
        _number("momentum", self.momentum, lambda v: 0 <= v < 1, "in [0, 1)")
        _number("eps", self.eps, lambda v: v > 0, "positive")
        _number("lr_drop_factor", self.lr_drop_factor, lambda v: 0 < v <= 1, "in (0, 1]")
        if self.lr_drop_at is not None:
            _number("lr_drop_at", self.lr_drop_at, lambda v: 0 < v < 1, "in (0, 1), or None")
        if self.target_accuracy is not None:
            _number(
                "target_accuracy", self.target_accuracy, lambda v: 0 < v <= 1, "in (0, 1], or None"
            )
        if len(self.betas) != 2:
            raise UsageError(f"betas must be two numbers in [0, 1). Got {self.betas!r}.")
        for beta in self.betas:
            _number("betas", beta, lambda v: 0 <= v < 1, "two numbers in [0, 1)")
        _count("max_epochs", self.max_epochs)
        _count("check_every", self.check_every)
        if self.batch_size is not None:
            _count("batch_size", self.batch_size)
        _number("sam_rho", self.sam_rho, lambda v: v >= 0, "0 or more")
        _number("sam_eta", self.sam_eta, lambda v: v >= 0, "0 or more")
        if self.sam_adaptive and not self.sam_rho:
            raise UsageError("sam_adaptive=True does nothing without a radius: set sam_rho too.")
        if self.sam_eta and not self.sam_adaptive:
            raise UsageError(f"sam_eta = {self.sam_eta} belongs to sam_adaptive=True.")
        for kind in self.augmentation:
            if kind not in AUGMENTATIONS:
                raise unknown_name("augmentation", kind, AUGMENTATIONS)
        if self.optimizer == "adam" and self.momentum:
            raise UsageError(
                f"momentum = {self.momentum} belongs to optimizer='sgd'; for Adam set betas."
            )

    def rate(self, epoch: int) -> float:
        """Return the learning rate of ``epoch`` (the first is 1)."""
        if self.lr_drop_at is not None and epoch > int(self.lr_drop_at * self.max_epochs):
            return self.lr * self.lr_drop_factor
        return self.lr

    def batches(self, n: int) -> list[slice]:
        """Cut ``n`` shuffled positions into batches; the last may be short."""
        size = n if self.batch_size is None else min(self.batch_size, n)
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    def target_count(self, n: int) -> int:
        """How many of ``n`` points must be right to stop; ``n + 1`` if never."""
        if self.target_accuracy is None:
            return n + 1
        return math.ceil(self.target_accuracy * n - 1e-9)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn a device name into a device that is there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise unknown_name("device", device, DEVICES) from error
    if resolved.type not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available()
        and (resolved.index or 0) < max(torch.cuda.device_count(), 1),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[resolved.type]:
        raise UsageError(
            f"Device {str(device)!r} is not available on this machine. Use 'cpu' or 'auto'."
        )
    return resolved


def _number(name: str, value: object, ok: Callable[[float], bool], expected: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not ok(value):  # type: ignore[arg-type]
        raise UsageError(f"{name} must be {expected} and finite. Got {value!r}.")


def _count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a positive integer. Got {value!r}.")
