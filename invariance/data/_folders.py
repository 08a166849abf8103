"""Where data sets that are folders of files, not IDX files, are looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from invariance.core._errors import DataError
from invariance.data._locate import VARIABLE


def find_folder(
    name: str, layouts: Sequence[str], needed: Sequence[str], root: str | os.PathLike[str] | None
) -> tuple[Path, str] | None:
    """Find a folder that holds everything that a data set needs, and say how it was found.

    The order is: ``root``, the folder named by ``INVARIANCE_DATA``, ``./data``, ``~/data``,
    ``~/.torch``; in each, the layouts one after another, and in ``root`` itself.
    """
    for folder, origin in _candidates(layouts, root):
        there = [entry for entry in needed if (folder / entry).exists()]
        if len(there) == len(needed):
            return folder, origin
        if there:
            missing = ", ".join(entry for entry in needed if entry not in there)
            raise DataError(
                f"{folder} holds only part of {name}: {missing} missing. Unpack the archive again."
            )
    return None


def not_found(
    name: str, layouts: Sequence[str], root: str | os.PathLike[str] | None, why: str
) -> DataError:
    """Say where a data set was looked for, and what to do."""
    looked = ", ".join(str(folder) for folder, _ in _candidates(layouts, root))
    return DataError(
        f"{name} was not found in {looked}, and {why}. -- Unpack it as {layouts[0]} in one of the "
        f"folders that {VARIABLE} or root=... name."
    )


def _candidates(
    layouts: Sequence[str], root: str | os.PathLike[str] | None
) -> Iterator[tuple[Path, str]]:
    bases: list[tuple[Path, str]] = []
    if root is not None:
        bases.append((_existing(root, "root"), "root"))
    if variable := os.environ.get(VARIABLE):
        bases.append((_existing(variable, f"the environment variable {VARIABLE}"), VARIABLE))
    usual = (Path("data"), Path.home() / "data", Path.home() / ".torch")
    bases += [(base, "found locally") for base in usual]
    for base, origin in bases:
        for layout in layouts:
            yield base / layout, origin
        if origin == "root":
            yield base, origin


def _existing(base: str | os.PathLike[str], what: str) -> Path:
    folder = Path(base).expanduser()
    if not os.path.isdir(folder):
        raise DataError(f"The data folder {folder}, given by {what}, is not a folder.")
    return folder
