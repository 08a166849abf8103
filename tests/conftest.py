"""What every test shares: threads, kernels, and real data where there is some."""

import os
import sys

# Before torch is loaded, and for every process that the tests start: kernels that round alike
# wherever data lies, or the tests of equal bits fail on some processors.
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Tests run side by side in processes; more threads than cores only slow them down.

    ``INVARIANCE_TEST_THREADS`` asks for more than one: sums are then split in another way.
    """
    before, threads = torch.get_num_threads(), int(os.environ.get("INVARIANCE_TEST_THREADS", "1"))
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mnist():
    """A function that loads MNIST or Fashion-MNIST, or skips where there is none.

    With ``INVARIANCE_REQUIRE_DATA`` set, missing data fails instead.
    """
    import invariance as inv

    def load(name="mnist", **sizes):
        root = os.environ.get("INVARIANCE_DATA")
        if root is None:
            if os.environ.get("INVARIANCE_REQUIRE_DATA"):
                pytest.fail("INVARIANCE_REQUIRE_DATA is set, but INVARIANCE_DATA is not.")
            pytest.skip("INVARIANCE_DATA is not set")
        return inv.load_task(name, root=root, **sizes)

    return load


#: Runs ``python -m invariance`` where Ctrl-C works, whatever the tests were started by.
_LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('invariance', run_name='__main__', alter_sys=True)"
)


@pytest.fixture(scope="session")
def interruptible():
    """The start of a command line: ``invariance`` as a program that Ctrl-C can end.

    A job in the background may be started with Ctrl-C ignored, and what it starts inherits that.
    """
    return [sys.executable, "-c", _LISTENING]
