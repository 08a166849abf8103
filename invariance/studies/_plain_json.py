"""Plain JSON values: what a study keeps, and how numbers that are not finite are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from invariance.core._errors import UsageError


def plain(content: object, where: str = "value") -> Any:
    """Turn what a study returns into plain values."""
    if content is None or isinstance(content, (str, bool)):
        return content
    if isinstance(content, int):
        return int(content)
    if isinstance(content, float):
        return float(content)
    if isinstance(content, Mapping):
        return {str(key): plain(value, f"{where}.{key}") for key, value in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        return [plain(value, f"{where}[{index}]") for index, value in enumerate(content)]
    if hasattr(content, "tolist"):  # NumPy and torch, arrays and single numbers
        return plain(content.tolist(), where)
    raise UsageError(
        f"{where} must be made of plain values (numbers, words, lists, mappings), so that it can "
        f"be written down. Got {type(content).__name__}."
    )


def to_json(content: object, where: str = "value") -> str:
    """Return the one JSON text of ``content``, faithful to NaN and infinity."""
    return json.dumps(plain(content, where), sort_keys=True, separators=(",", ":"))


def finite(content: Any) -> Any:
    """Return plain values with ``None`` for every number that is not finite."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [finite(value) for value in content]
    return content


def not_finite(content: Any, where: str = "") -> dict[str, str]:
    """Say which numbers :func:`finite` replaces, and what they were."""
    if isinstance(content, float):
        return {} if math.isfinite(content) else {where: str(content)}
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    found: dict[str, str] = {}
    for key, value in items:
        found |= not_finite(value, f"{where}.{key}" if where else str(key))
    return found
