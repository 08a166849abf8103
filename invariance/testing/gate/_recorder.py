"""What was asserted while someone was listening: the source of the plugin's report.

Imports nothing heavy: the pytest plugin loads this file at start-up.

PYTEST_DONT_REWRITE: there is no assertion here to rewrite, and rewriting costs start-up time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

#: One entry a claim: ``claim``, ``measure``, ``holds``, ``message`` and ``detail``.
ClaimRecord = dict[str, Any]

_LISTENER: ContextVar[list[ClaimRecord] | None] = ContextVar("invariance_records", default=None)


@contextmanager
def collecting() -> Iterator[list[ClaimRecord]]:
    """Collect the records of every assertion made inside the block."""
    found: list[ClaimRecord] = []
    token = _LISTENER.set(found)
    try:
        yield found
    finally:
        _LISTENER.reset(token)


def record(
    claim: str, measure: str, *, holds: bool, message: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Note one claim, if someone is listening."""
    listener = _LISTENER.get()
    if listener is not None:
        listener.append(
            {
                "claim": claim,
                "measure": measure,
                "holds": holds,
                "message": message,
                "detail": dict(detail or {}),
            }
        )


@contextmanager
def recorded(claim: str, measure: str) -> Iterator[dict[str, Any]]:
    """Note a claim by how its block ends: an ``AssertionError`` breaks it."""
    detail: dict[str, Any] = {}
    try:
        yield detail
    except AssertionError as error:
        found = getattr(error, "findings", ())
        facts = {"findings": [entry.to_dict() for entry in found]}
        kind = getattr(error, "kind", None)
        if kind:
            facts["fault"] = kind
        record(claim, measure, holds=False, message=str(error), detail=facts)
        raise
    record(claim, measure, holds=True, message=str(detail.pop("message", "")), detail=detail)
