"""A trained network as a safetensors file whose bytes are a function of its content.

The library writes the metadata in an order that changes from call to call. Here the header
is written anew with sorted keys, so that the same network is the same file, bit for bit.
Nothing that could execute code (a pickle) is ever read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from invariance.core._errors import StudyError
from invariance.studies._config import Config

#: Version of what the metadata says. Files of schema 1 have no digest of their header.
WEIGHTS_SCHEMA = "2"

#: Bytes of the little-endian number that a safetensors file starts with: its header's length.
_PREFIX = 8


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write tensors as safetensors bytes, the same for the same content."""
    # Clones: the format refuses tensors that share memory, which tied weights do.
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    return annotate(safetensors.torch.save(plain), metadata or {})


def annotate(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return safetensors bytes with ``metadata`` in place of what was there."""
    header, data = _split(content)
    header.pop("__metadata__", None)
    if metadata:
        header["__metadata__"] = dict(metadata)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)  # the format wants the data aligned
    return len(text).to_bytes(_PREFIX, "little") + text + data


def decode(content: bytes, origin: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read safetensors bytes."""
    try:
        tensors = safetensors.torch.load(content)
        metadata = _split(content)[0].get("__metadata__", {})
    except Exception as error:  # of any kind: a changed header can say anything
        raise StudyError(
            f"{origin} is not a whole safetensors file ({error}). "
            "Delete it to have the network trained anew, or restore it from a copy."
        ) from error
    return tensors, dict(metadata)


def seal(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return safetensors bytes with ``metadata`` and a digest of the whole file, header too."""
    metadata = {**metadata, "schema": WEIGHTS_SCHEMA}
    whole = annotate(content, metadata)
    return annotate(whole, metadata | {"digest": hashlib.sha256(whole).hexdigest()})


def data_digest(content: bytes) -> str:
    """Return the SHA-256 of the tensors' bytes, without the header."""
    return hashlib.sha256(_split(content)[1]).hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def require_network(content: bytes, config: Config, path: Path) -> dict[str, str]:
    """Make sure that weights without a record are those of a network."""
    tensors, metadata = decode(content, str(path))

    def refuse(reason: str) -> StudyError:
        return StudyError(
            f"{path} cannot be taken over: {reason}. Delete it, and the network is trained anew."
        )

    schema = metadata.get("schema")
    if schema not in ("1", WEIGHTS_SCHEMA):
        raise refuse(f"its schema is {schema!r}, expected {WEIGHTS_SCHEMA!r}")
    if schema == WEIGHTS_SCHEMA and content != seal(
        content, {name: text for name, text in metadata.items() if name != "digest"}
    ):
        raise refuse("it has changed since it was written")
    if metadata.get("config") != config.canonical():
        raise refuse(
            f"it holds the network {metadata.get('config')}, expected {config.canonical()}"
        )
    try:
        facts = json.loads(metadata["facts"])
    except (KeyError, ValueError) as error:
        raise refuse("it does not say how training went") from error
    if metadata.get("sha256", data_digest(content)) != data_digest(content):
        raise refuse("its content has changed since it was written")
    broken = not_finite(tensors)
    if broken and not (isinstance(facts, dict) and facts.get("diverged")):
        raise refuse(f"{broken[0]} holds NaN or infinity though training did not diverge")
    return metadata


def _split(content: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    end = _PREFIX + int.from_bytes(content[:_PREFIX], "little")
    return json.loads(content[_PREFIX:end]), content[end:]
