"""The studies there are: those of every installed distribution that announces some."""

from __future__ import annotations

from importlib.metadata import entry_points

from invariance.core._errors import UsageError
from invariance.studies._study import Study

#: ``[project.entry-points."invariance.studies"]``: a name, and ``MODULE:TUPLE_OF_STUDIES``.
GROUP = "invariance.studies"


def catalogue() -> tuple[Study, ...]:
    """Every announced study, those of this package first."""
    found: dict[str, Study] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name != "papers", p.name)):
        for study in point.load():
            if not isinstance(study, Study):
                raise UsageError(
                    f"Entry point {point.name!r} ({point.value}) must name a tuple of studies. "
                    f"Got {type(study).__name__} in it."
                )
            if found.setdefault(study.name, study) is not study:
                raise UsageError(
                    f"Two installed distributions announce a study {study.name!r}; the second "
                    f"is {point.value}. Rename one."
                )
    return tuple(found.values())
