"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called as ``progress(done, total, what)``.
TellProgress = Callable[[int, int, str], None]
