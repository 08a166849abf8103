"""Files that a command is asked to write."""

from __future__ import annotations

import sys
from pathlib import Path


def require_target(path: str | Path) -> None:
    """Refuse before the work what cannot be written, and say which folder will be made."""
    from invariance.core._files import require_writable

    require_writable(path)
    folder = Path(path).parent
    if not folder.is_dir():
        sys.stderr.write(f"invariance: there is no folder {folder}; it will be made.\n")
