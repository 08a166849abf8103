"""Tell a caller that a model cannot read the data, rather than which kernel noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from invariance.core._errors import DataError


@contextmanager
def reading(model: nn.Module, rows: Tensor, name: str = "x") -> Iterator[None]:
    """Turn a failure of a forward pass inside the block into an error that names the data.

    Args:
        model: The module that reads ``rows``.
        rows: The batch that it was given.
        name: What the caller calls the batch.

    Raises:
        DataError: If the pass fails with torch's ``RuntimeError``, such as shapes that cannot
            be multiplied; lack of memory and operations that a device lacks pass through.
    """
    try:
        yield
    except (torch.OutOfMemoryError, NotImplementedError):
        raise
    except RuntimeError as error:
        shape = ", ".join(["rows", *map(str, rows.shape[1:])])
        kind = str(rows.dtype).removeprefix("torch.")
        raise DataError(
            f"{type(model).__name__} does not accept {name} of shape ({shape}) and dtype {kind}: "
            f"{error}. Give {name} the shape and dtype that the model's first layer reads."
        ) from error
