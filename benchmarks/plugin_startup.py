"""What the pytest plugin adds to the start-up of a project that does not use it.

Runs pytest on an empty test file with and without the plugin, interleaved, and prints the
minima of wall-clock time and their difference, and the import time of the plugin alone:

    python benchmarks/plugin_startup.py --rounds 10
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: Plugins other than ours stay off, so that only ours differs between the two sides.
BASE = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"]
SIDES = {"without": ["-p", "no:invariance"], "with": []}


def run(folder: Path, extra: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pytest", *BASE, *extra],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def import_time() -> float:
    """Seconds that importing the plugin takes once pytest itself is imported."""
    code = (
        "import time, pytest; t = time.perf_counter(); import invariance.testing._plugin; "
        "print(time.perf_counter() - t)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    return float(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n")
        (folder / "pytest.ini").write_text("[pytest]\n")
        for _ in range(rounds):
            for name, extra in SIDES.items():
                times[name].append(run(folder, extra))
    best = {name: min(values) for name, values in times.items()}
    imported = min(import_time() for _ in range(rounds))
    print(f"without the plugin  {1000 * best['without']:8.1f} ms")
    print(f"with the plugin     {1000 * best['with']:8.1f} ms")
    print(f"added               {1000 * (best['with'] - best['without']):8.1f} ms (minima)")
    print(f"ratio               {best['with'] / best['without']:8.3f}")
    print(f"its import alone    {1000 * imported:8.1f} ms")


if __name__ == "__main__":
    main()
