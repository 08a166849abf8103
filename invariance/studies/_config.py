"""What one network is: every setting that decides it, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from invariance.core._errors import UsageError

Scalar = str | int | float | bool | None
Setting = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Config:
    """Everything that decides one trained network, and nothing else.

    Attributes:
        recipe: Names the training procedure and its version, such as ``"perceptron/1"``.
            Raise the version when the same settings would give another network.
        settings: Names to plain values (numbers, words, ``None``, tuples of these).
        seed: Seed of the initial weights and of the order of the data.
    """

    recipe: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in self.settings.items():
            require_plain(name, value)
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __hash__(self) -> int:
        return hash(self.canonical())

    def __reduce__(self) -> tuple[object, ...]:
        # MappingProxyType does not pickle; rebuild from a plain dictionary.
        return (type(self), (self.recipe, dict(self.settings), self.seed))

    def canonical(self) -> str:
        """Return the one JSON text of this configuration: sorted keys, no spaces."""
        return canonical_json(
            {"recipe": self.recipe, "seed": self.seed, "settings": dict(self.settings)}
        )

    @property
    def id(self) -> str:
        """The network's name: 24 hexadecimal digits of the SHA-256 of its canonical text."""
        return digest(self.canonical())

    @property
    def cell(self) -> str:
        """The name of everything but the seed: networks of one cell train together."""
        return digest(canonical_json({"recipe": self.recipe, "settings": dict(self.settings)}))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Rebuild a configuration from its canonical text.

        Args:
            text: What :meth:`canonical` gave.

        Returns:
            The configuration; its ``id`` is that of the original.
        """
        plain = json.loads(text)
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain["settings"].items()
        }
        return cls(plain["recipe"], settings, plain["seed"])


def canonical_json(content: object) -> str:
    """Return the one JSON text of ``content``: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """Return 24 hexadecimal digits of the SHA-256 of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def require_plain(name: str, value: object) -> None:
    """Refuse a setting that cannot be written down the same way everywhere."""
    entries: Iterable[object] = value if isinstance(value, tuple) else (value,)
    for entry in entries:
        if not isinstance(entry, (str, int, float, bool, type(None))) or (
            isinstance(entry, float) and not math.isfinite(entry)
        ):
            raise UsageError(
                f"Setting {name!r} must be a finite number, a word, None, or a tuple of these, "
                f"so that it can be written down and hashed. Got {value!r}."
            )
