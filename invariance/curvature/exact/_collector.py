"""What a sweep over cotangents finds, by row and column: collected, then summed and spread."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from invariance.curvature._batches import Sums, Tally
from invariance.curvature.exact._result import Wants


class Squares:
    """Adds up the squares that make a diagonal, and how far their draws lie apart.

    Every row has a value for every column; the columns of one draw follow each other. Rows are
    kept apart where that is asked for, or where the variance of a drawn sum needs it.
    """

    def __init__(self, samples: int | None, *, by_row: bool) -> None:
        self.samples = samples
        self._by_row = by_row or samples is not None
        self._total: Tensor | None = None
        self._draw: Tensor | None = None
        self._seconds: Tensor | None = None

    def add(self, rows: Tensor, signs: Tensor | None, *, last: bool) -> None:
        """Add one column's ``(n, ...)``; ``last`` of its draw or not."""
        if not self._by_row:
            found = rows.sum(0) if signs is None else torch.tensordot(signs, rows, dims=1)
        else:
            found = rows if signs is None else rows * signs.view(-1, *[1] * (rows.ndim - 1))
        if self.samples is not None:
            self._draw = found if self._draw is None else self._draw + found
            if not last:
                return
            found, self._draw = self._draw, None
            second = found.square()
            self._seconds = second if self._seconds is None else self._seconds.add_(second)
        self._total = found if self._total is None else self._total + found

    def by_row(self) -> tuple[Tensor, Tensor | None]:
        """Return each row's sum over columns, and its variance if it was drawn."""
        assert self._total is not None
        if self.samples is None or self._seconds is None:
            return self._total, None
        m = self.samples
        centred = (self._seconds - self._total.square() / m).clamp_min(0)
        return self._total, centred * (m / (m - 1))

    def over_rows(self) -> tuple[Tensor, Tensor | None]:
        """Return the same, summed over rows."""
        total, spread = self.by_row()
        if not self._by_row:
            return total, None
        return total.sum(0), None if spread is None else spread.sum(0)


class Collector:
    """Collects values by row and cotangent over one chunk of rows, cotangent after cotangent.

    ``columns`` is how many cotangents come, ``samples`` how many draws they make.
    """

    def __init__(self, wants: Wants, columns: int, samples: int | None) -> None:
        self.wants = wants
        self.columns, self.samples = columns, samples
        self._values: dict[tuple[str, str], list[Tensor]] = {}
        self._squares: dict[str, Squares] = {}
        self._seen = 0

    def next_column(self) -> None:
        """Say that what follows belongs to the next cotangent."""
        self._seen += 1

    def add(self, kind: str, name: str, rows: Tensor, signs: Tensor | None) -> None:
        """Add per-row values ``(n,)``."""
        self._values.setdefault((kind, name), []).append(rows if signs is None else rows * signs)

    def add_squares(
        self, name: str, rows: Tensor, signs: Tensor | None, *, by_row: bool = False
    ) -> None:
        """Add the squared gradients ``(n, ...)`` of every row in a parameter."""
        if name not in self._squares:
            self._squares[name] = Squares(self.samples, by_row=by_row)
        per_draw = self.columns // (self.samples or self.columns)
        self._squares[name].add(rows, signs, last=self._seen % per_draw == 0)

    def add_entries(self, name: str, squares: Tensor, signs: Tensor | None) -> None:
        """Add what the squared gradients ``(n, ...)`` in a parameter make entry by entry."""
        if self.wants.diagonal:
            self.add_squares(name, squares, signs)
        scale = self.scale(name)
        if scale is not None:
            weights = scale.to(squares).square().reshape(-1)
            self.add("scaled", name, squares.flatten(1) @ weights, signs)

    def scale(self, name: str) -> Tensor | None:
        """Return the factor of a parameter's entries, if a scaled trace is wanted."""
        return None if self.wants.scales is None else self.wants.scales.get(name)

    def taken_squares(self, name: str) -> tuple[Tensor, Tensor | None] | None:
        """Return, and forget, what was collected of a parameter's squares row by row."""
        found = self._squares.pop(name, None)
        return None if found is None else found.by_row()

    def report(self, tally: Tally, sums: Sums, state: Mapping[str, Tensor]) -> None:
        """Hand over what was collected; ``state`` knows the parameters' shapes."""
        for (kind, name), columns in self._values.items():
            tally.add(kind, name, torch.stack(columns, dim=-1))
        for name, squares in self._squares.items():
            total, spread = squares.over_rows()
            shape = state[name].shape
            more = None if spread is None else spread.reshape(shape)
            sums.add_diagonal(name, total.reshape(shape), more)
