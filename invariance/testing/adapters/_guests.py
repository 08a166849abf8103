"""Run another library as a guest: imported on use, seeded, its warnings its own business."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from invariance.cells._faults import ambient_seed
from invariance.core._errors import MeasureError


@contextmanager
def as_a_guest(seed: int) -> Iterator[None]:
    """Run another library: its random draws seeded, its warnings its own business.

    Those warn of leaked graphs (the copy is thrown away) or of deprecated calls of theirs,
    and would fail a test run that treats warnings as errors.
    """
    with ambient_seed(seed), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_library(module: str, distribution: str) -> Any:
    """Import a library when it is needed, or say how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MeasureError(
            f"This adapter needs {module}. Install it with: pip install {distribution}"
        ) from error
