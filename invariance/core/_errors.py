"""Every error that the package raises on purpose.

Each message says what was expected, what was got, and how to fix it. All
derive from :class:`InvarianceError`, so a caller can catch one type.
"""

from __future__ import annotations


class InvarianceError(Exception):
    """Base class of every error that this package raises on purpose."""


class TransformError(InvarianceError, ValueError):
    """A transform does not apply to this module; the message says where and why."""


class TracingError(InvarianceError, ValueError):
    """A module's graph could not be read; the message names the offending line."""


class MeasureError(InvarianceError, ValueError):
    """A measure was asked for something that it cannot answer correctly."""


class EndedProgramError(MeasureError):
    """A measure called ``sys.exit``; nothing that it was tried on counts as tried."""


class UnevaluatedError(MeasureError):
    """A measure refused a network that a map of its own claim led to: the claim was not tried."""


class ModelError(InvarianceError, ValueError):
    """A model cannot be built, trained or measured as asked."""


class DataError(InvarianceError, ValueError):
    """A data set is missing, corrupt or malformed; the message names the file or tensor."""


class UsageError(InvarianceError, ValueError):
    """A name or option that the package does not know; the message lists the known ones."""


class StudyError(InvarianceError, RuntimeError):
    """A study cannot go on: its folder is damaged or in use, its disk full, a worker gone."""


def unknown_name(kind: str, name: object, known: object) -> UsageError:
    """Build the error for an unknown name, listing the known ones."""
    import difflib

    names = [str(entry) for entry in known]  # type: ignore[attr-defined]
    lower = {entry.lower().replace("_", "-"): entry for entry in names}
    given = str(name)[:200].lower().replace("_", "-")
    close = [lower[match] for match in difflib.get_close_matches(given, list(lower), n=1)]
    head, of, rest = kind.partition(" of ")
    ending = {"y": "ies", "s": "ses", "h": "hes", "x": "xes"}.get(head[-1:], head[-1:] + "s")
    if head.endswith(("ey", "ay", "oy", "uy")):
        ending = "ys"
    plural = head[:-1] + ending + of + rest
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Known {plural}: {', '.join(names)}.")
