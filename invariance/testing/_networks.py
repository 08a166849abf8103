"""Four small networks to test measures on, trained once and kept without pickles."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invariance.core._errors import unknown_name
from invariance.core._files import write_atomically
from invariance.core._version import __version__
from invariance.data import Task, load_task
from invariance.models import mlp
from invariance.models._initialisation import seeded
from invariance.training import fit

#: Rows that a network is trained on and measured on, and unseen rows beside them.
N_TRAIN, N_UNSEEN = 150, 20

#: Measured rows: enough to be in general position, few enough to be fast.
N_MEASURED = 48

#: How the networks are trained.
TRAINING: Mapping[str, Any] = {"lr": 0.1, "max_epochs": 200, "batch_size": 32}

#: Digits are 8 x 8 pixels in ten classes.
SIDE, CLASSES = 8, 10


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network in eval mode, with the data to measure it on.

    Attributes:
        name: Which of the networks it is.
        model: The network, float32, in eval mode; a fresh copy for each user.
        x: ``(48, 64)`` training inputs.
        y: ``(48,)`` their labels.
        task: All the data.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    task: Task


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to the same shape."""
        inner = self.relu(self.norm1(self.conv1(x)))
        result: Tensor = self.relu(x + self.norm2(self.conv2(inner)))
        return result


def _mlp() -> nn.Module:
    return mlp((SIDE * SIDE, 12, 8, CLASSES))


def _mlp_batch_norm() -> nn.Module:
    return mlp((SIDE * SIDE, 12, 8, CLASSES), batch_norm=True)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        ResidualBlock(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


BUILDERS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "mlp_batch_norm": _mlp_batch_norm,
    "cnn": _cnn,
    "resnet": _resnet,
}


def untrained(name: str, seed: int = 0) -> nn.Module:
    """Build one of the networks with the weights of a seed."""
    if name not in BUILDERS:
        raise unknown_name("network", name, BUILDERS)
    with seeded(seed):
        return BUILDERS[name]()


class Networks(Mapping[str, TrainedNetwork]):
    """The networks by name, each trained when it is first asked for.

    Args:
        folder: Where to keep the weights; ``None`` to train anew each time.
        seed: Seed of weights and training.
    """

    def __init__(self, folder: Path | None = None, *, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        self._states: dict[str, dict[str, Tensor]] = {}
        self._task: Task | None = None

    @property
    def task(self) -> Task:
        """The digits that the networks are trained on; bundled, so no network access."""
        if self._task is None:
            self._task = load_task("digits", n_train=N_TRAIN, n_unseen=N_UNSEEN, seed=self.seed)
        return self._task

    def __getitem__(self, name: str) -> TrainedNetwork:
        model = untrained(name, self.seed)
        if name not in self._states:
            self._states[name] = self._load(name, model) or self._train(name, model)
        model.load_state_dict(self._states[name])
        x, y = self.task.x_train[:N_MEASURED], self.task.y_train[:N_MEASURED]
        return TrainedNetwork(name, model.eval(), x.clone(), y.clone(), self.task)

    def __iter__(self) -> Iterator[str]:
        return iter(BUILDERS)

    def __len__(self) -> int:
        return len(BUILDERS)

    def path(self, name: str) -> Path | None:
        """Where a network's weights are kept: the name tells all that they follow from.

        That is the versions, the seed, the structure, the starting weights, the data, and how
        the network is trained.
        """
        if self.folder is None:
            return None
        model = untrained(name, self.seed)
        data = {"x": self.task.x_train, "y": self.task.y_train}
        key = digest(model.state_dict(), __version__, torch.__version__, self.seed, str(model))
        key = digest(data, key, sorted(TRAINING.items()))
        return self.folder / f"{name}-{key[:16]}.pt"

    def _train(self, name: str, model: nn.Module) -> dict[str, Tensor]:
        trained = fit(model, self.task, seed=self.seed, **TRAINING)
        state = dict(trained.model.state_dict())
        if path := self.path(name):
            buffer = io.BytesIO()
            torch.save({"state": state, "digest": digest(state, path.name)}, buffer)
            write_atomically(path, buffer.getvalue())
        return state

    def _load(self, name: str, model: nn.Module) -> dict[str, Tensor] | None:
        """Read kept weights; ``None`` if there are none, or if they are not usable."""
        path = self.path(name)
        if path is None or not path.is_file():
            return None
        try:
            # weights_only refuses everything that could run code.
            kept = torch.load(path, weights_only=True)
            state: dict[str, Tensor] = kept["state"]
            model.load_state_dict(state)
            same = kept["digest"] == digest(state, path.name)
        except Exception:  # a truncated or foreign file: any error means train again
            return None
        return state if same else None


def digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """Return the SHA-256 sum of named tensors, bit for bit, and of what belongs to them."""
    found = hashlib.sha256(repr(facts).encode())
    for name, value in tensors.items():
        content = value.detach().cpu().contiguous()
        found.update(repr((name, str(content.dtype), tuple(content.shape))).encode())
        found.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
