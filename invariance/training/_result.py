"""What training returns: the network, and how it got there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from invariance.core._repr import facts_table
from invariance.training._options import Options


@dataclass(frozen=True)
class EpochRecord:
    """Train loss and accuracy after one epoch, measured in eval mode.

    Attributes:
        epoch: The epoch's number; the first is 1.
        train_loss: Mean cross-entropy over the training points.
        train_accuracy: Share of the training points classified correctly.
    """

    epoch: int
    train_loss: float
    train_accuracy: float


@dataclass(frozen=True, eq=False)
class Fit:
    """One trained network.

    Attributes:
        model: The network: a plain module in eval mode that shares nothing with the
            model it was made from, nor with other networks of an ensemble.
        seed: The seed that it depends on.
        epochs: Epochs trained.
        reached_target: Whether the target accuracy was reached (``False`` when none
            was asked for).
        train_accuracy: Of ``model``, on the training points.
        train_loss: Mean cross-entropy of ``model`` on the training points.
        test_accuracy: Of ``model`` on the test points; NaN if there are none.
        history: One record for every checked epoch.
        config: How it was trained.
        diverged: Whether training ended in NaN or infinity (kept only when asked for).
    """

    model: nn.Module
    seed: int
    epochs: int
    reached_target: bool
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    history: tuple[EpochRecord, ...]
    config: Options
    diverged: bool = False

    @property
    def generalization_gap(self) -> float:
        """Train accuracy minus test accuracy."""
        return self.train_accuracy - self.test_accuracy

    def __repr__(self) -> str:
        end = "diverged" if self.diverged else f"train accuracy {self.train_accuracy:.1%}"
        return (
            f"Fit({type(self.model).__name__}, seed {self.seed}, {self.epochs} epochs, {end}, "
            f"test accuracy {self.test_accuracy:.1%})"
        )

    def _repr_html_(self) -> str:
        return facts_table(
            f"Fit of {type(self.model).__name__}",
            {
                "epochs": self.epochs,
                "reached its target": self.reached_target,
                "train accuracy": f"{self.train_accuracy:.1%}",
                "train loss": f"{self.train_loss:.4g}",
                "test accuracy": f"{self.test_accuracy:.1%}",
                "seed": self.seed,
            },
        )
