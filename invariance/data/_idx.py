"""The IDX format of MNIST: a 4-byte magic, big-endian sizes, then the bytes.

Format: http://yann.lecun.com/exdb/mnist (two zero bytes, the type code, the rank).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from invariance.core._errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08

Bytes = npt.NDArray[np.uint8]

#: Bytes of the largest official file, 60,000 images of 28 x 28; nothing larger is read.
LARGEST = 16 + 60_000 * 28 * 28

#: Verified arrays of this process by file identity, so that a second load costs nothing.
_VERIFIED: dict[tuple[str, int, int, str], Bytes] = {}


def read_verified(path: Path, sha256: str) -> Bytes:
    """Read an IDX file, plain or gzip, and verify every byte of it before use."""
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_mtime_ns, status.st_size, sha256)
        if key in _VERIFIED:
            return _VERIFIED[key]
        with path.open("rb") as file:
            packed = file.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}. Check the path and permissions.") from error
    content = _decompress(path, packed, sha256)
    if len(content) > LARGEST:
        raise DataError(
            f"{path} holds more than {LARGEST:,} bytes, the largest of the official files; no more "
            f"of it was unpacked. {_REMEDY}"
        )
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise DataError(
            f"{path} is not the file that it is named after: the SHA-256 sum of its "
            f"decompressed content is {actual}, expected {sha256} ({len(content)} bytes read). "
            + _REMEDY
        )
    array = parse(path, content)
    _VERIFIED[key] = array
    return array


def parse(path: Path, content: bytes) -> Bytes:
    """Parse the decompressed content of an IDX file of unsigned bytes."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected 000008 and the rank. {_REMEDY}"
        )
    rank = content[3]
    start = 4 + 4 * rank
    # A header that ends early counts as sizes of zero, which cannot fit the length either.
    header = content[4:start].ljust(4 * rank, b"\0")
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} is truncated or damaged: its header promises {expected} bytes "
            f"for shape {shape}, it has {len(content)}. {_REMEDY}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _decompress(path: Path, packed: bytes, sha256: str) -> bytes:
    if not packed.startswith(_GZIP_MAGIC):
        return packed
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            return file.read(LARGEST + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path} is truncated or damaged: unpacking its {len(packed)} bytes failed "
            f"({error}); expected content with SHA-256 sum {sha256}, got none. {_REMEDY}"
        ) from error


_REMEDY = (
    "Nothing of it was used. Delete the file and let it be downloaded again, "
    "or put a good copy in its place."
)
