"""Where an image set's files are looked for, in a documented order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch

from invariance.core._errors import DataError
from invariance.data._catalog import FILES, ImageSet

#: Environment variable that names a data folder.
VARIABLE = "INVARIANCE_DATA"


@dataclass(frozen=True)
class Located:
    """The four files of an image set, found together in one folder.

    Attributes:
        folder: Where they are.
        origin: How the folder was found, in words.
        paths: Logical file to path.
    """

    folder: Path
    origin: str
    paths: Mapping[str, Path]


def cache_folder(images: ImageSet) -> Path:
    """Return the folder that downloads of ``images`` go to (pooch's per-user cache)."""
    return Path(pooch.os_cache("invariance")) / images.folder / "raw"


def spellings(name: str) -> tuple[str, ...]:
    """Return the names under which archives ship the official file ``name``."""
    dotted = name.replace("-idx", ".idx")
    return (name, dotted, f"{name}.gz", f"{dotted}.gz")


def find_in(folder: Path) -> dict[str, Path]:
    """Find the files of an image set in ``folder``; plain ones win over packed ones."""
    found = {}
    for logical, name in FILES.items():
        for spelling in spellings(name):
            if (folder / spelling).is_file():
                found[logical] = folder / spelling
                break
    return found


def locate(images: ImageSet, root: str | os.PathLike[str] | None) -> Located | None:
    """Find a complete set of files on this machine.

    The order is: ``root``, the folder named by ``INVARIANCE_DATA``, torchvision's usual
    folders (``./data``, ``~/data``, ``~/.torch``), the download cache.
    """
    for folder, origin in _candidates(images, root):
        found = find_in(folder)
        if len(found) == len(FILES):
            return Located(folder, origin, found)
        if found and folder != cache_folder(images):
            missing = ", ".join(name for key, name in FILES.items() if key not in found)
            raise DataError(
                f"{folder} holds only part of {images.name}: {missing} (plain or .gz) missing. "
                "Complete the folder, or move it away to have the data downloaded."
            )
    return None


def searched(images: ImageSet, root: str | os.PathLike[str] | None) -> str:
    """Name the folders that :func:`locate` looks into, for messages."""
    return ", ".join(dict.fromkeys(str(folder) for folder, _ in _candidates(images, root)))


def _candidates(
    images: ImageSet, root: str | os.PathLike[str] | None
) -> Iterator[tuple[Path, str]]:
    if root is not None:
        base = _existing(Path(root).expanduser(), "root")
        yield from ((folder, "root") for folder in _layouts(base, images))
        # Named for this one task, so files without a telling folder are taken as its own.
        yield from ((folder, "root") for folder in (base / "raw", base))
    variable = os.environ.get(VARIABLE)
    if variable:
        base = _existing(Path(variable).expanduser(), f"the environment variable {VARIABLE}")
        yield from ((folder, VARIABLE) for folder in _layouts(base, images))
    for usual in (Path("data"), Path.home() / "data", Path.home() / ".torch"):
        yield from ((folder, "found locally") for folder in _layouts(usual, images))
    yield cache_folder(images), "download cache"


def _layouts(base: Path, images: ImageSet) -> tuple[Path, ...]:
    return (base / images.folder / "raw", base / images.folder, base / images.name)


def _existing(base: Path, what: str) -> Path:
    if not os.path.isdir(base):
        raise DataError(
            f"The data folder {base}, given by {what}, is not a folder. "
            "Expected one that holds <name>/raw in torchvision's layout."
        )
    return base
