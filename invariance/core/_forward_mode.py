"""Forward-mode differentiation without the warnings of its first use."""

from __future__ import annotations

import importlib
import warnings
from functools import cache


@cache
def prepare_forward_mode() -> None:
    """Load PyTorch's forward-mode rules quietly; call once before ``torch.func.jvp``.

    Some releases of PyTorch build those rules with ``torch.jit.script`` at first use, which
    they themselves deprecate: a user who turns warnings into errors would get an error that
    is neither theirs nor ours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
