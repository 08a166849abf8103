"""The rows of a curvature computation: checked once, the same in every pass, and summed over.

A curvature operator visits its data many times, so data that cannot be visited twice, or
that changes between visits, would give the product with a different matrix each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

from invariance.core._errors import DataError, MeasureError
from invariance.core._modules import all_finite
from invariance.core._rng import undisturbed_generators

#: Inputs: one tensor of rows, or a re-iterable of ``(x, y)`` batches such as a DataLoader.
Data: TypeAlias = "Tensor | Iterable[tuple[Tensor, Tensor]]"

#: Bytes of data that are kept in memory instead of being read again in every pass.
HOLD_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of ``(x, y)`` that are the same rows in every pass.

    Attributes:
        held: The batches, when they fit in memory.
        source: The user's iterable, read again in every pass, when they do not.
        rows: Number of rows in all.
    """

    held: tuple[tuple[Tensor, Tensor], ...] | None
    source: Iterable[tuple[Tensor, Tensor]] | None
    rows: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.held is not None:
            yield from self.held
            return
        assert self.source is not None
        with undisturbed_generators():
            yield from self.source

    def first(self) -> tuple[Tensor, Tensor]:
        """Return the first batch."""
        return next(iter(self))


def collect_batches(x: Data, y: Tensor | None = None, *, hold_bytes: int = HOLD_BYTES) -> Batches:
    """Check the data and bring it into a form that every pass can visit again.

    Shapes: ``x (n, ...)``, ``y (n,)``.
    """
    if isinstance(x, Batches):
        return x
    if isinstance(x, Tensor):
        if y is None:
            raise DataError("x is a tensor, so its targets y are needed. Pass y as well.")
        check_batch(x, y)
        return Batches(((x.detach(), y.detach()),), None, x.shape[0])
    if y is not None:
        raise DataError(
            f"x is a {type(x).__name__} of batches, which carries its own targets. "
            "Got y as well; leave y out, or pass both as tensors."
        )
    if not hasattr(x, "__iter__"):
        raise DataError(
            "The data must be a tensor with targets, or a re-iterable of (x, y) batches. "
            f"Got {type(x).__name__}."
        )
    return _collect(x, hold_bytes)


def _collect(source: Iterable[tuple[Tensor, Tensor]], hold_bytes: int) -> Batches:
    """Read ``source`` twice, compare the two passes, and keep the batches if they fit."""
    kept: list[tuple[Tensor, Tensor]] = []
    size = rows = 0
    first: list[Tensor] = []
    with undisturbed_generators():
        iterator = iter(source)
        if cast(object, iterator) is source:
            raise DataError(
                f"The data is a one-shot iterator ({type(source).__name__}): a curvature product "
                "reads it many times. Pass a list of batches, a DataLoader, or tensors."
            )
        for number, batch in enumerate(iterator):
            bx, by = _as_pair(batch, number)
            check_batch(bx, by)
            first.append(_row_digests(bx, by))
            rows += bx.shape[0]
            size += bx.nbytes + by.nbytes
            if size <= hold_bytes:
                kept.append((bx.detach(), by.detach()))
            else:
                kept.clear()
        if not rows:
            raise DataError("The data holds no batch at all. Give at least one row.")
        second = [
            _row_digests(*_as_pair(batch, number)) for number, batch in enumerate(iter(source))
        ]
    _compare_passes(first, second)
    held = tuple(kept) if size <= hold_bytes else None
    return Batches(held, None if held is not None else source, rows)


def _as_pair(batch: object, number: int) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise DataError(
        f"Batch {number} is not a pair (x, y). Got {type(batch).__name__}"
        + (f" of length {len(batch)}." if isinstance(batch, (tuple, list)) else ".")
    )


def _row_digests(x: Tensor, y: Tensor) -> Tensor:
    """Return one 64-bit digest a row: a wrapping integer product with fixed odd numbers."""
    digest = torch.zeros(x.shape[0], dtype=torch.int64)
    for salt, tensor in ((1, x), (2, y)):
        flat = tensor.detach().cpu().reshape(tensor.shape[0], -1).contiguous()
        if flat.is_floating_point() or flat.is_complex():
            flat = torch.view_as_real(flat).flatten(1) if flat.is_complex() else flat
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
            flat = flat.view(bits)
        flat = flat.to(torch.int64)
        draw = torch.Generator().manual_seed(salt)
        keys = torch.randint(-(2**62), 2**62, (flat.shape[1],), generator=draw) * 2 + 1
        digest = digest * 31 + (flat * keys).sum(1)
    return digest


def _compare_passes(first: list[Tensor], second: list[Tensor]) -> None:
    """Refuse data whose rows, as a multiset, differ between two passes."""
    one, two = torch.cat(first), torch.cat(second) if second else torch.empty(0)
    if one.shape == two.shape and torch.equal(one.sort().values, two.sort().values):
        return
    if one.shape == two.shape:
        what = f"{int((one.sort().values != two.sort().values).sum())} of {one.numel()} rows differ"
    else:
        what = f"the first pass gave {one.numel()} rows, the second {two.numel()}"
    raise DataError(
        f"The data is not the same in two passes: {what}. Turn off random augmentation and "
        "drop_last, or draw the batches once and pass them as a list."
    )


def check_batch(x: Tensor, y: Tensor) -> None:
    """Refuse data that no loss can be measured on."""
    for label, tensor in (("x", x), ("y", y)):
        if not isinstance(tensor, Tensor):
            raise DataError(f"{label} must be a torch tensor. Got {type(tensor).__name__}.")
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise DataError(f"{label} is empty (shape {tuple(tensor.shape)}). Give some rows.")
    if x.shape[0] != y.shape[0]:
        raise DataError(f"x has {x.shape[0]} rows and y has {y.shape[0]}. They must agree.")
    if not all_finite(x):
        raise DataError("x contains NaN or infinity. Remove or impute those entries.")


def check_outputs(outputs: Tensor) -> None:
    """Refuse outputs that are not a finite, non-empty ``(n, K)`` matrix."""
    if outputs.ndim != 2 or 0 in outputs.shape:
        raise DataError(
            "The model's outputs must have shape (n, K), rows by classes. "
            f"Got {tuple(outputs.shape)}; flatten or average the other dimensions."
        )
    if not all_finite(outputs):
        raise DataError(
            "The model's outputs contain NaN or infinity: its parameters overflowed, or training "
            "diverged. Curvature is not defined there."
        )


def check_budget(memory_budget: int) -> None:
    """Refuse a memory budget that is not a positive number of bytes."""
    if not memory_budget > 0:
        raise MeasureError(
            f"memory_budget must be a positive number of bytes. Got {memory_budget!r}."
        )


class Tally:
    """One chunk's values by row and draw, summed, and how far its draws lie apart.

    ``samples`` is how many independent draws every row's value is the mean of; ``None`` when
    nothing was drawn. Rows are independent, so the variance of their sum is the sum of theirs.
    """

    def __init__(self, samples: int | None) -> None:
        self.samples = samples
        self.scalars: dict[tuple[str, str], Tensor] = {}
        self.spreads: dict[tuple[str, str], Tensor] = {}
        self._whole: dict[str, Tensor] = {}

    def add(self, kind: str, name: str, rows: Tensor) -> None:
        """Add values ``(*lead, n, R)``, whose columns add up to the rows' values."""
        self.scalars[kind, name] = rows.sum((-2, -1))
        if self.samples is not None:
            draws = self.by_draw(rows)
            self.spreads[kind, name] = self.spread(draws)
            if kind in ("trace", "scaled"):
                self._whole[kind] = self._whole.get(kind, 0) + draws
                self.spreads[f"whole {kind}", ""] = self.spread(self._whole[kind])

    def by_draw(self, rows: Tensor) -> Tensor:
        """Add up the columns ``(..., R)`` of every draw; ``(..., samples)``."""
        if self.samples is None:
            return rows
        return rows.reshape(*rows.shape[:-1], self.samples, -1).sum(-1)

    def variances(self, draws: Tensor) -> Tensor:
        """Estimate the variance of the sums ``(...)`` of independent draws ``(..., m)``."""
        m = draws.shape[-1]
        centred = draws - draws.mean(-1, keepdim=True)
        return centred.square().sum(-1) * (m / (m - 1))

    def spread(self, draws: Tensor) -> Tensor:
        """Return the variance of ``draws (n, m)`` summed, and what tells its degrees of freedom.

        The variance ``v_n`` of m draws has ``E v_n^2 = v^2 (m + 1) / (m - 1)``, if they are
        about normal; with this, Satterthwaite's degrees of freedom of the sum are the square of
        the first entry over the second.
        """
        each = self.variances(draws.cpu().double())
        return torch.stack([each.sum(), each.square().sum() / (draws.shape[-1] + 1)])


class Sums:
    """Running sums over chunks of rows, before the division by the loss's total mass.

    Scalars are kept in float64 on the CPU (some devices have none), diagonals where and
    as they were computed. ``lead`` is the shape in front of every sum: ``()`` for one
    model, ``(M,)`` for a stack of M.
    """

    def __init__(self, lead: tuple[int, ...] = ()) -> None:
        self.rows = 0
        #: Cotangents that were carried for every row.
        self.columns = 0
        self.mass = torch.zeros(lead, dtype=torch.float64)
        self.scalars: dict[tuple[str, str], Tensor] = {}
        self.diagonals: dict[str, Tensor] = {}
        #: Key to ``(2,)``: the variance of the sum of what was drawn, and :meth:`Tally.spread`'s
        #: other number.
        self.spreads: dict[tuple[str, str], Tensor] = {}
        #: The variances of the entries of diagonals that were drawn.
        self.diagonal_spreads: dict[str, Tensor] = {}

    def add_chunk(self, rows: int, mass: Tensor, tally: Tally) -> None:
        """Add one chunk's scalars with a single transfer from the device."""
        self.rows += rows
        moved = torch.stack([mass, *tally.scalars.values()]).cpu().double()
        self.mass = self.mass + moved[0]
        for key, value in zip(tally.scalars, moved[1:], strict=True):
            self.scalars[key] = self.scalars[key] + value if key in self.scalars else value
        for key, pair in tally.spreads.items():
            found = pair.cpu().double()
            self.spreads[key] = self.spreads[key] + found if key in self.spreads else found

    def add_diagonal(self, name: str, value: Tensor, spread: Tensor | None = None) -> None:
        """Add one chunk's contribution to a parameter's diagonal, and its entries' variance."""
        for found, into in ((value, self.diagonals), (spread, self.diagonal_spreads)):
            if found is None:
                continue
            if name in into:
                into[name] += found
            else:
                into[name] = found

    def of(self, kind: str) -> dict[str, Tensor]:
        """Return name to mean (sum over mass) for one kind of scalar."""
        self._require_mass()
        return {
            name: value / self.mass for (this, name), value in self.scalars.items() if this == kind
        }

    def _require_mass(self) -> None:
        if bool((self.mass <= 0).any()):
            raise DataError(
                "No row counts towards the loss: every label is ignored or has class weight 0."
            )

    def mean_diagonals(self) -> dict[str, Tensor]:
        """Return parameter name to its diagonal, in its shape (behind ``lead``)."""
        self._require_mass()
        ones = {name: [1] * (d.ndim - self.mass.ndim) for name, d in self.diagonals.items()}
        return {
            name: whole / self.mass.to(whole).view(*self.mass.shape, *ones[name])
            for name, whole in self.diagonals.items()
        }

    @staticmethod
    def joined(parts: Sequence[Sums]) -> Sums:
        """Put stacks of models one behind the other."""
        if len(parts) == 1:
            return parts[0]
        whole = Sums()
        whole.rows, whole.mass = parts[0].rows, torch.cat([part.mass for part in parts])
        whole.scalars = {
            key: torch.cat([part.scalars[key] for part in parts]) for key in parts[0].scalars
        }
        whole.diagonals = {
            name: torch.cat([part.diagonals[name] for part in parts]) for name in parts[0].diagonals
        }
        return whole
