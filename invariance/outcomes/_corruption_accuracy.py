"""Accuracy on corrupted images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from invariance.core._errors import UsageError
from invariance.core._estimate import Estimate
from invariance.outcomes._corruptions import CORRUPTIONS, STRENGTHS, corrupt
from invariance.outcomes._outputs import accuracy

#: ``(kind, strength)`` to the corrupted images.
Suite = Mapping[tuple[str, int], Tensor]


def corruption_suite(
    x: Tensor,
    *,
    kinds: Iterable[str] = tuple(CORRUPTIONS),
    strengths: Iterable[int] = STRENGTHS,
    seed: int = 0,
) -> dict[tuple[str, int], Tensor]:
    """Corrupt images in every way, once for all networks that will look at them.

    Args:
        x: See :func:`~invariance.outcomes.corrupt`.
        kinds: Which corruptions.
        strengths: Which strengths.
        seed: Seed of the draws.

    Returns:
        ``(kind, strength)`` to the corrupted images.

    Raises:
        UsageError: If there is nothing to do, or for an unknown kind or strength.

    Example:
        >>> import torch
        >>> suite = corruption_suite(torch.rand(2, 9), kinds=["blur"], strengths=[1, 2])
        >>> sorted(suite)
        [('blur', 1), ('blur', 2)]
    """
    levels = tuple(strengths)
    asked = [(kind, strength) for kind in kinds for strength in levels]
    if not asked:
        raise UsageError("Give at least one kind of corruption and one strength.")
    return {(kind, strength): corrupt(x, kind, strength, seed) for kind, strength in asked}


def corruption_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    kinds: Iterable[str] = tuple(CORRUPTIONS),
    strengths: Iterable[int] = STRENGTHS,
    seed: int = 0,
    suite: Suite | None = None,
) -> Estimate:
    """Accuracy on corrupted images, averaged over strengths and then over kinds.

    Args:
        model: A module in eval mode that returns ``(n, K)`` logits.
        x: Square images; see :func:`~invariance.outcomes.corrupt`.
        y: ``(n,)`` labels.
        kinds: Which corruptions.
        strengths: Which strengths.
        seed: Seed of the draws.
        suite: What :func:`corruption_suite` made of ``x``, to spare the work when there are
            many networks; then ``kinds``, ``strengths`` and ``seed`` are not looked at.

    Returns:
        The mean; ``parts`` has it by kind, ``detail`` has ``clean``, the accuracy without a
        corruption, and ``table``, kind to the accuracies at each strength.

    Raises:
        UsageError: If there is nothing to do, or for an unknown kind or strength.
        DataError: If the rows are no square images in [0, 1], or labels do not match.
        MeasureError: If the model does not classify.

    Example:
        A model that says "first class" whatever it sees is right on the rows of that class:

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(9, 2).eval()
        >>> state = {"weight": torch.zeros(2, 9), "bias": torch.tensor([1.0, 0.0])}
        >>> _ = model.load_state_dict(state)
        >>> x, y = torch.rand(4, 9), torch.tensor([0, 0, 0, 1])
        >>> float(corruption_accuracy(model, x, y, kinds=["blur"], strengths=[1]))
        0.75
    """
    made = (
        corruption_suite(x, kinds=kinds, strengths=strengths, seed=seed) if suite is None else suite
    )
    if not made:
        raise UsageError("The suite is empty. Make one with corruption_suite(x).")
    table: dict[str, list[float]] = {}
    for (kind, _), images in made.items():
        table.setdefault(kind, []).append(accuracy(model, images, y))
    parts = {kind: sum(found) / len(found) for kind, found in table.items()}
    return Estimate(
        sum(parts.values()) / len(parts),
        method=f"mean of {len(made)} corrupted copies of the images",
        parts=parts,
        detail={
            "clean": accuracy(model, x, y),
            "table": {kind: tuple(found) for kind, found in table.items()},
        },
    )
