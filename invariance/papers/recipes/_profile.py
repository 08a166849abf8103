"""One forward pass over many points: labels, and the patterns of every hidden layer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from invariance.studies._study import Record
from invariance.weakness.patterns._activation_layers import require_eval, watching
from invariance.weakness.patterns._regions import free_parameter_parts

Bits = npt.NDArray[np.bool_]

ROWS_AT_ONCE = 4_096


class Profile(NamedTuple):
    """What a network does with a set of points.

    Attributes:
        labels: ``(n,)`` predicted classes.
        patterns: Number of distinct activation patterns of each hidden layer.
        bits: The patterns themselves, eight bits to a byte, a row a point.
    """

    labels: npt.NDArray[np.int64]
    patterns: tuple[int, ...]
    bits: tuple[npt.NDArray[np.uint8], ...]


def profile(model: nn.Module, x: Tensor) -> Profile:
    """Run a network over points once, in its own precision, a few thousand at a time.

    Shapes: ``x (n, d)``.
    """
    require_eval(model)
    like = next(model.parameters())
    labels: list[Tensor] = []
    packed: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def capture(index: int, _kind: str, _refused: str, source: Tensor) -> None:
        bits = (source > 0).flatten(1).cpu().numpy()
        packed.setdefault(index, []).append(np.packbits(bits, axis=1))

    with torch.no_grad():
        for part in torch.split(x, ROWS_AT_ONCE):
            with watching(capture):
                labels.append(model(part.to(like)).argmax(dim=1).cpu())
    bits = tuple(np.concatenate(parts) for _, parts in sorted(packed.items()))
    return Profile(torch.cat(labels).numpy(), tuple(distinct(rows) for rows in bits), bits)


def distinct(rows: npt.NDArray[np.uint8]) -> int:
    """Count the distinct rows of packed bits."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))
    return int(np.unique(whole).size)


def pack(bits: Bits) -> str:
    """Write bits down as text: eight to a byte, base 64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack(text: str, count: int) -> Bits:
    """Read ``count`` bits that :func:`pack` wrote."""
    raw = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(raw, count=count).astype(bool)


def agreement(wrong: Bits) -> npt.NDArray[np.float64]:
    """Among the points that a network gets wrong, the share that the others get right.

    Shapes: ``wrong (m, n)``; returns ``(m,)``.
    """
    networks = len(wrong)
    errors = wrong.sum(axis=1)
    rescued = (wrong * (networks - wrong.sum(axis=0))[None, :]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: npt.NDArray[np.float64] = rescued / (errors * max(networks - 1, 1))
    return shares if networks > 1 else np.full(networks, np.nan)


def with_agreement(records: Sequence[Record]) -> list[Record]:
    """Add ``ensemble_agreement`` to records that hold their mistakes.

    All records must be of one cell of the study: the networks that agree or not. A record's
    ``mistakes`` are the packed bits over ``points`` unseen points; ``moved`` lists the
    points that the rescaled network gets right where it got them wrong, or the reverse.
    """
    if len(records) < 2:
        return list(records)
    wrong = np.stack([unpack(r.measured["mistakes"], r.measured["points"]) for r in records])
    moved = wrong.copy()
    for row, record in zip(moved, records, strict=True):
        row[list(record.measured["moved"])] ^= True
    before, after = agreement(wrong), agreement(moved)
    return [
        replace(
            record,
            measured={
                **record.measured,
                "measures": _with(record.measured["measures"], float(before[i])),
                "rescaled": _with(record.measured["rescaled"], float(after[i])),
            },
        )
        for i, record in enumerate(records)
    ]


def _with(values: Mapping[str, float], share: float) -> dict[str, float]:
    return {**values, "ensemble_agreement": share}


class Regions(NamedTuple):
    """Regions of one hidden layer that points fall into.

    Attributes:
        patterns: Distinct patterns of the unseen points.
        free: Those that no training point has.
        parameters: Parameters of a classifier in each region that training leaves open.
    """

    patterns: int
    free: int
    parameters: int


def regions_of(
    train: npt.NDArray[np.uint8], unseen: npt.NDArray[np.uint8], units: int, classes: int
) -> Regions:
    """Count what :mod:`invariance.weakness.patterns._regions` counts, from patterns read already.

    Shapes: ``train (n, b)``, ``unseen (u, b)``.
    """
    void = np.dtype((np.void, train.shape[1]))
    held, counts = np.unique(np.ascontiguousarray(train).view(void), return_counts=True)
    seen = np.unique(np.ascontiguousarray(unseen).view(void))
    free = int(seen.size - np.isin(seen, held).sum())
    parts = free_parameter_parts(tuple(int(c) for c in counts), free, units, classes)
    return Regions(int(seen.size), free, sum(parts))
