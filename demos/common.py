"""What every demo shares: its options, and where its figure goes."""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure


def options(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse ``--task``, ``--seed``, ``--out`` and ``--small``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", default="auto", help="mnist, fashion-mnist, digits or auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure")
    parser.add_argument("--small", action="store_true", help="a size that ends in seconds")
    return parser.parse_args(arguments)


def save(figure: Figure, out: Path, name: str) -> Path:
    """Save a figure as PNG and say where it is."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")
    return path
