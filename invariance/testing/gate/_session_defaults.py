"""The assertions with a session's seed and number of examples filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from invariance.measures._registry import AnyMeasure
from invariance.testing.gate._assert_invariant import assert_invariant
from invariance.testing.gate._findings import Certificate


@dataclass(frozen=True)
class Gate:
    """What the fixture ``invariance_gate`` gives a test.

    Attributes:
        seed: From ``--invariance-seed``.
        examples: From ``--invariance-examples``.
    """

    seed: int = 0
    examples: int = 1

    def assert_invariant(
        self, measure: AnyMeasure, model: nn.Module, x: Tensor, y: Tensor, **options: Any
    ) -> Certificate:
        """As :func:`invariance.testing.assert_invariant`, under the session's options."""
        settings: Mapping[str, Any] = {"seed": self.seed, "examples": self.examples, **options}
        return assert_invariant(measure, model, x, y, **settings)
