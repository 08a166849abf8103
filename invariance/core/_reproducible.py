"""Whether equal sums are rounded alike wherever their numbers lie in memory.

On some processors (AMD's, for one) the kernels of Intel's MKL, with which torch multiplies
matrices, split a sum by where its terms lie. A network trained among others then differs from
the same network trained alone by round-off. MKL has a mode that does not do this and costs
nothing; it is chosen by an environment variable that is read once, by the first kernel.

A library does not set its user's environment. So the command line, the workers of studies and
the tests ask for the mode, the records say whether it was on, and without it equality to
round-off is all that is promised.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

#: Intel's name for the mode; ``AUTO`` keeps the fastest kernels that the processor has.
VARIABLE = "MKL_CBWR"

#: ``MKL_CBWR_BRANCH`` and ``MKL_CBWR_BRANCH_OFF`` of ``mkl_types.h``.
_BRANCH, _OFF = 1, 1


def ask_for_reproducible_kernels() -> None:
    """Set the environment of this process and its children, where nobody has.

    Of use before the first kernel of torch only: for programs, never for a library.
    """
    os.environ.setdefault(VARIABLE, "AUTO")


def reproducible_kernels() -> bool:
    """Return whether the mode is on in this process: False where torch has no MKL.

    MKL is asked itself, since a variable set after its first kernel changes nothing; the
    variable is asked where torch's MKL cannot be.
    """
    import torch

    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return bool(library.mkl_serv_cbwr_get(_BRANCH) != _OFF)
    except (OSError, AttributeError):  # another system, or a torch built in another way
        return os.environ.get(VARIABLE, "") not in ("", "OFF")
