"""The data of a curvature computation: checked once, then the same in every pass.

A curvature operator visits its data many times, so data that cannot be visited twice, or
that changes between visits, would give the product with a different matrix each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from invariance.core._errors import DataError
from invariance.curvature.losses._resolve import check_batch

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
        n_batches: Number of batches in a pass.
    """

    held: tuple[tuple[Tensor, Tensor], ...] | None
    source: Iterable[tuple[Tensor, Tensor]] | None
    rows: int
    n_batches: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.held is not None:
            yield from self.held
            return
        assert self.source is not None
        with _undisturbed_generators():
            yield from self.source

    def first(self) -> tuple[Tensor, Tensor]:
        """Return the first batch."""
        return next(iter(self))


def collect_batches(x: Data, y: Tensor | None = None, *, hold_bytes: int = HOLD_BYTES) -> Batches:
    """Check the data and bring it into a form that every pass can visit again.

    Args:
        x: ``(n, ...)`` inputs with ``y`` their targets, or, without ``y``, a re-iterable of
            ``(x, y)`` batches. A loader that shuffles is fine: only the rows matter.
            Batches that were collected before are returned as they are.
        y: ``(n,)`` or ``(n, K)`` targets; ``None`` for an iterable of batches.
        hold_bytes: Keep the batches in memory up to this size.

    Returns:
        The batches. No global random state is moved by reading them.

    Raises:
        DataError: One-shot iterators, empty data, NaN or infinity, unequal lengths, or rows
            that differ between two passes.
    """
    if isinstance(x, Batches):
        return x
    if isinstance(x, Tensor):
        if y is None:
            raise DataError("x is a tensor, so its targets y are needed. Pass y as well.")
        check_batch(x, y)
        return Batches(((x.detach(), y.detach()),), None, x.shape[0], 1)
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
    size = rows = count = 0
    first: list[Tensor] = []
    with _undisturbed_generators():
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
            count += 1
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
    return Batches(held, None if held is not None else source, rows, count)


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


@contextmanager
def _undisturbed_generators() -> Iterator[None]:
    """Put the global generators back after a loader has drawn from them."""
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - restored, not drawn
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002
