"""What a function-preserving map leaves: a new model, how it acted, how far it was verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterAction:
    """How one parameter of the new model relates to the old model's parameters.

    Entry ``i`` of the new parameter moves the network's output exactly ``gradient[i]``
    times as much as entry ``index[i]`` of the old parameter ``source``. For a scaling
    ``theta' = D theta`` that is ``gradient = 1 / D`` and ``index`` the identity.

    Attributes:
        source: Name of the old parameter; ``None`` if the new one has no counterpart
            and no influence on the output to first order.
        gradient: ``(shape of the new parameter)`` factors ``c``, in float64.
        index: Flat indices into the old parameter, same shape; ``None`` for identity.
    """

    source: str | None
    gradient: Tensor
    index: Tensor | None = None


@dataclass(frozen=True)
class Action:
    """How a transform acted on the parameters, for laws of second derivatives.

    Attributes:
        parameters: New parameter name to its :class:`ParameterAction`. Every parameter
            of the new model is present.
    """

    parameters: Mapping[str, ParameterAction]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def diagonal(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the new Hessian diagonal from the old one: ``c_i^2 H_jj``.

        Args:
            old: Old parameter name to its Hessian diagonal, in the parameter's shape.

        Returns:
            New parameter name to its predicted Hessian diagonal, in float64.
        """
        predicted = {}
        for name, act in self.parameters.items():
            if act.source is None:
                predicted[name] = torch.zeros_like(act.gradient)
                continue
            source = old[act.source].to(act.gradient)
            if act.index is not None:
                source = source.reshape(-1)[act.index.reshape(-1)].reshape(act.gradient.shape)
            predicted[name] = act.gradient.square() * source
        return predicted

    def then(self, second: Action) -> Action:
        """Compose with a later action: first ``self``, then ``second``."""
        composed = {}
        for name, late in second.parameters.items():
            early = None if late.source is None else self.parameters[late.source]
            if early is None or early.source is None:
                composed[name] = ParameterAction(None, torch.zeros_like(late.gradient))
                continue
            shape = late.gradient.shape
            where = (
                torch.arange(early.gradient.numel(), device=late.gradient.device).reshape(shape)
                if late.index is None
                else late.index
            )
            flat = where.reshape(-1)
            gradient = late.gradient * early.gradient.reshape(-1)[flat].reshape(shape)
            index = where if early.index is None else early.index.reshape(-1)[flat].reshape(shape)
            composed[name] = ParameterAction(early.source, gradient, index)
        return Action(composed)


@dataclass(frozen=True)
class Verification:
    """The measured difference between a model and its transformed copy.

    Attributes:
        max_abs_logit_diff: Largest absolute difference of any output entry.
        labels_changed: How many rows changed their arg-max.
        bitwise: True if every output is bitwise equal.
        output_scale: Largest absolute output entry, to read the difference against.
        rows: How many input rows were compared.
        compared: ``"logits"``, or ``"softmax"`` for a transform that keeps only that.
    """

    max_abs_logit_diff: float
    labels_changed: int
    bitwise: bool
    output_scale: float
    rows: int
    compared: str = "logits"


@dataclass(frozen=True)
class Applied:
    """A transformed copy of a model, with the evidence.

    Attributes:
        model: The new module; shares no storage with the old one.
        verification: Measured difference of the two functions; ``None`` when there was
            no input to compare them on.
        action: How the parameters were acted on; ``None`` if no per-entry relation holds.
        description: What was done, in one line (site, factors).
        detail: Transform-specific facts (drawn factors, permutation, ...).
    """

    model: nn.Module
    verification: Verification | None
    action: Action | None
    description: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)
