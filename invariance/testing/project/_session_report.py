"""Every claim of a test session, as JSON or as one self-contained HTML page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invariance.core._files import write_atomically
from invariance.testing.gate._recorder import ClaimRecord

#: Version of the JSON layout.
SCHEMA = 1

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left; }
td { vertical-align: top; }
pre { white-space: pre-wrap; margin: 0; }
.broken { background: #fdecea; }
"""


def write_session_report(path: Path, claims: Sequence[ClaimRecord], seed: int) -> Path:
    """Write the claims of one session."""
    broken = sum(not entry["holds"] for entry in claims)
    if path.suffix == ".json":
        content = {
            "schema": SCHEMA,
            "seed": seed,
            "claims": [plain(entry) for entry in claims],
            "summary": {"claims": len(claims), "broken": broken},
        }
        return write_atomically(path, json.dumps(content, indent=1, allow_nan=False))
    return write_atomically(path, _page(claims, broken, seed))


def _page(claims: Sequence[ClaimRecord], broken: int, seed: int) -> str:
    rows = "".join(
        f'<tr class="{"" if entry["holds"] else "broken"}">'
        f"<td>{html.escape(str(entry.get('test', '')))}</td>"
        f"<td>{html.escape(entry['measure'])}</td><td>{html.escape(entry['claim'])}</td>"
        f"<td>{'holds' if entry['holds'] else 'broken'}</td>"
        f"<td><pre>{html.escape(entry['message'])}</pre></td></tr>\n"
        for entry in sorted(claims, key=lambda entry: entry["holds"])
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Invariance of measures</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Invariance of measures</h1>\n<p>{len(claims)} claims, {broken} broken; "
        f"seed {seed}.</p>\n<table><thead><tr><th>test</th><th>measure</th><th>claim</th>"
        f"<th>verdict</th><th>what was seen</th></tr></thead><tbody>\n{rows}</tbody></table>\n"
        "</body></html>\n"
    )


def plain(value: Any) -> Any:
    """Plain JSON types; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
