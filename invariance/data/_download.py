"""Downloads from public mirrors: quick to give up, verified, atomic."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from invariance.core._errors import DataError
from invariance.data._catalog import FILES, ImageSet
from invariance.data._idx import read_verified
from invariance.data._locate import Located, cache_folder, find_in

#: Seconds that a mirror has to answer at all; name look-up is included.
CONNECT_SECONDS = 3.0
#: Seconds without a byte after which a transfer counts as dead.
READ_SECONDS = 10.0


class DownloadError(DataError):
    """No mirror could deliver a verified copy."""


def download(images: ImageSet, *, deadline: float | None = None) -> Located:
    """Fetch the files that the cache lacks, verify them, and put them there atomically."""
    folder = cache_folder(images)
    for logical, path in find_in(folder).items():
        read_verified(path, images.sha256[logical])
    missing = {
        f"{FILES[logical]}.gz": partial(read_verified, sha256=images.sha256[logical])
        for logical in FILES
        if logical not in find_in(folder)
    }
    fetch(images.name, missing, folder, images.mirrors, deadline=deadline)
    return Located(folder, "downloaded", find_in(folder))


def fetch(
    title: str,
    files: Mapping[str, Callable[[Path], object]],
    folder: Path,
    mirrors: tuple[str, ...],
    *,
    deadline: float | None = None,
) -> None:
    """Fetch files from the first mirror that has them; each is verified before it is kept.

    ``files`` maps a name, appended to a mirror's address, to what raises if the file is wrong.
    A file that is there already is not asked for again, so a broken download goes on.
    """
    stop = None if deadline is None else time.monotonic() + deadline
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        alive, failures = _answering(mirrors)
        for name in missing:
            _fetch(title, name, files[name], folder, alive, list(failures), stop)


def _fetch(
    title: str,
    name: str,
    verify: Callable[[Path], object],
    folder: Path,
    mirrors: list[str],
    failures: list[str],
    stop: float | None,
) -> None:
    """Fetch one file under a temporary name; rename it only once it is verified."""
    for mirror in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        except OSError as error:
            raise DownloadError(f"Cannot write to the download cache {folder}: {error}.") from error
        os.close(handle)
        try:
            _transfer(mirror + name, temporary, stop)
            verify(Path(temporary))
            os.replace(temporary, folder / name)
        except (OSError, DataError) as error:  # requests' errors derive from OSError
            failures.append(f"{mirror}{name}: {error}")
        else:
            return
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise DownloadError(
        f"Could not download {name} of {title}. "
        + " | ".join(failures)
        + f" -- Put it into {folder}, or name the folder that holds the data with root=..."
    )


def _transfer(url: str, target: str, stop: float | None) -> None:
    downloader = pooch.HTTPDownloader(
        progressbar=_Deadline(stop), chunk_size=1 << 16, timeout=(CONNECT_SECONDS, READ_SECONDS)
    )
    downloader(url, target, None)


class _Deadline:
    """A silent progress bar, in pooch's protocol, that ends a transfer which takes too long."""

    def __init__(self, stop: float | None) -> None:
        self.stop = stop
        self.total = 0

    def update(self, count: int) -> None:
        if self.stop is not None and time.monotonic() > self.stop:
            raise TimeoutError("the transfer took too long")

    def reset(self) -> None:
        """Nothing to draw."""

    def close(self) -> None:
        """Nothing to draw."""


def _answering(mirrors: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split ``mirrors`` into those that answer now and reasons for the others.

    A connect timeout does not bound the name look-up, which can hang for long on a
    machine without a network: so ask in daemon threads and wait once for all.
    """
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(mirror: str) -> None:
        answers.put((mirror, _probe(mirror)))

    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    outcome: dict[str, str | None] = {}
    end = time.monotonic() + CONNECT_SECONDS
    while len(outcome) < len(mirrors):
        try:
            mirror, problem = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        outcome[mirror] = problem
    alive = [mirror for mirror in mirrors if outcome.get(mirror, "silent") is None]
    failures = [
        f"{mirror}: {outcome.get(mirror) or f'no answer within {CONNECT_SECONDS:g} s'}"
        for mirror in mirrors
        if mirror not in alive
    ]
    return alive, failures


def _probe(mirror: str) -> str | None:
    """Ask a mirror's host for anything; return the reason if it cannot be reached."""
    parts = urlsplit(mirror)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # it answered, and only refuses to list its root
    except (OSError, ValueError) as error:
        return str(error)
