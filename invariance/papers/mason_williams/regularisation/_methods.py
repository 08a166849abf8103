"""The ways to regularise that are compared, and the names that a reader knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypedDict

from invariance.studies._config import Config

#: What changes the images of a data set without changing what they show: digits and letters
#: must not be mirrored, clothes and objects need not stand upright.
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mnist": ("shift", "rotate"),
        "digits": ("shift", "rotate"),
        "fashion-mnist": ("shift", "flip"),
        "cifar-10": ("shift", "flip"),
        "cifar-100": ("shift", "flip"),
        "tiny-imagenet": ("shift", "flip"),
    }
)


class Settings(TypedDict):
    """What a method sets in a configuration."""

    weight_decay: float
    augmentation: tuple[str, ...]
    sam_rho: float
    sam_adaptive: bool


@dataclass(frozen=True)
class Method:
    """One way to regularise.

    Attributes:
        weight_decay: L2 penalty.
        augmented: Whether images are changed at random.
        sam_rho: Radius of sharpness-aware minimisation.
        sam_adaptive: Whether it is relative to the weights.
    """

    weight_decay: float = 0.0
    augmented: bool = False
    sam_rho: float = 0.0
    sam_adaptive: bool = False

    def settings(self, augmentation: tuple[str, ...]) -> Settings:
        """Return what the method sets, given what augmentation means for the data."""
        return {
            "weight_decay": self.weight_decay,
            "augmentation": augmentation if self.augmented else (),
            "sam_rho": self.sam_rho,
            "sam_adaptive": self.sam_adaptive,
        }


BASELINE = "baseline"

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        BASELINE: Method(),
        "weight-decay": Method(weight_decay=5e-4),
        "augmentation": Method(augmented=True),
        "sam": Method(sam_rho=0.05),
        "weight-decay+sam": Method(weight_decay=5e-4, sam_rho=0.05),
        "augmentation+sam": Method(augmented=True, sam_rho=0.05),
        # Not in the paper. The radius is that of Kwon et al. 2021 for CIFAR-10.
        "adaptive-sam": Method(sam_rho=0.5, sam_adaptive=True),
    }
)

#: What the paper compares.
PUBLISHED_METHODS = tuple(name for name in METHODS if name != "adaptive-sam")


def method_of(config: Config) -> str:
    """Name the method of a configuration."""
    s = config.settings
    asked = Method(
        float(s["weight_decay"]),  # type: ignore[arg-type]
        bool(s["augmentation"]),
        float(s["sam_rho"]),  # type: ignore[arg-type]
        bool(s["sam_adaptive"]),
    )
    for name, method in METHODS.items():
        if method == asked:
            return name
    raise KeyError(f"{asked} is no method of this study.")
