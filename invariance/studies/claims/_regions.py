"""Regions of claims as a file: written down and dated before the run that they judge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invariance.core._errors import UsageError
from invariance.studies.claims._claims import Claim, Region


@dataclass(frozen=True)
class Declared:
    """What was fixed of a study's claims, and when.

    Attributes:
        file: Name of the file.
        fixed: Day on which it was committed, ``YYYY-MM-DD``.
        remark: What a reader must know: whether any result had been seen.
        regions: Claim to region.
    """

    file: str
    fixed: str
    remark: str
    regions: Mapping[str, Region]

    @classmethod
    def read(cls, path: Path) -> Declared:
        """Read a file of regions: ``fixed``, ``remark``, ``regions`` (name to two ends)."""
        content = json.loads(path.read_text(encoding="utf-8"))
        regions = {
            name: Region(-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in content["regions"].items()
        }
        return cls(path.name, content["fixed"], content["remark"], regions)

    def __getitem__(self, name: str) -> Region:
        """Return the region of a claim; one that was not declared is an error."""
        if name not in self.regions:
            raise UsageError(f"{self.file} declares no region for the claim {name!r}.")
        return self.regions[name]

    def check(self, claims: Sequence[Claim]) -> list[str]:
        """Return the names of the claims that are judged by no region of this file."""
        return [claim.name for claim in claims if self.regions.get(claim.name) != claim.region]

    def to_dict(self) -> dict[str, Any]:
        """Return what results say of the file."""
        return {"file": self.file, "fixed": self.fixed, "remark": self.remark}


def regions_content(claims: Sequence[Claim], fixed: str, remark: str) -> str:
    """Return the text of a file of regions for these claims."""
    regions = {claim.name: claim.to_dict()["region"] for claim in claims}
    return json.dumps({"fixed": fixed, "remark": remark, "regions": regions}, indent=1) + "\n"
