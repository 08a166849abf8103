"""How results present themselves in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """Return a small HTML table of names and values; both are escaped, and nothing is styled.

    Examples:
        >>> facts_table("Task", {"points": 3})
        '<table><caption>Task</caption><tr><th scope="row">points</th><td>3</td></tr></table>'
    """
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption>{rows}</table>"
