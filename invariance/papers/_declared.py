"""The regions of the studies' claims, one file a study: ``regions/<name>.json``."""

from __future__ import annotations

from pathlib import Path

from invariance.studies.claims._regions import Declared

FOLDER = Path(__file__).parent / "regions"


def declared(study: str) -> Declared:
    """Read the regions of a study's claims."""
    return Declared.read(FOLDER / f"{study}.json")
