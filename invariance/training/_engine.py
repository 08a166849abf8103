"""What trains a set of networks in lockstep: the interface, and perceptrons by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invariance.core._perceptron import Dense, read_perceptron
from invariance.training._augmentation import View
from invariance.training._options import Options
from invariance.training._sam import Climbing
from invariance.training.perceptrons._activations import ActivationLayer, formula
from invariance.training.perceptrons._first_layer import Head, make_head
from invariance.training.perceptrons._layers import Affine, BatchNorm, Layer, SlopeLayer
from invariance.training.perceptrons._stacked import Stacked, Workspace
from invariance.training.perceptrons._update_rules import Rule, make_rule

#: Rows that an evaluation looks at in one go; fixed, so that the results are, too.
BLOCK = 2048


class TrainingEngine(Protocol):
    """Trains the networks in slots ``0 .. count - 1`` in lockstep."""

    def run_epoch(self, order: Tensor | None, rate: float, view: View | None = None) -> None:
        """Take one pass over the data in each network's order, ``(count, n)``."""
        ...

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Return train loss and number of points right, ``(count,)`` each, in eval mode."""
        ...

    def write(self, slot: int, model: nn.Module) -> None:
        """Copy a network's weights into ``model``, which holds its starting weights."""
        ...

    def move(self, source: int, target: int) -> None:
        """Copy the network in slot ``source`` over the one in slot ``target``."""
        ...

    def narrow(self, count: int) -> None:
        """Drop all but the first ``count`` slots."""
        ...


class PerceptronEngine:
    """Plain ``nn.Sequential`` perceptrons, batched over networks, derivatives by hand."""

    def __init__(
        self, models: Sequence[nn.Sequential], x: Tensor, y: Tensor, options: Options
    ) -> None:
        self._n, self._y, self._options = len(x), y, options
        self._rule: Rule = make_rule(options)
        self._climbing = Climbing(self._rule, options) if options.sam_rho else None
        if self._climbing is not None:
            self._rule = self._climbing
        self._work = Workspace(len(models), x)
        columns = list(zip(*map(_modules, models), strict=True))
        self._head: Head = make_head(
            columns[0],
            x,
            self._rule,
            self._work,
            options,
            last=len(columns) == 1,
        )
        self._layers: list[Layer] = []
        for column in columns[1:]:
            self._layers.append(self._layer(column, last=column is columns[-1]))
        self._minus_one = x.new_full((1, 1, 1), -1.0)

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Say whether ``model`` is a perceptron of known layers that all train."""
        steps = read_perceptron(model, training=True)
        parameters = list(model.parameters())
        return (
            steps is not None
            and isinstance(steps[0], Dense)
            and all(parameter.requires_grad for parameter in parameters)
            and len({parameter.dtype for parameter in parameters}) == 1
        )

    def run_epoch(self, order: Tensor | None, rate: float, view: View | None = None) -> None:
        """Step through the batches of all networks side by side."""
        labels = self._y.expand(self._work.count, -1) if order is None else self._y[order]
        self._head.start_epoch(order, view)
        for batch in self._options.batches(self._n):
            self._rule.begin_step(rate)
            if self._climbing is not None:
                self._pass(batch, labels)
                self._climbing.climb()
            self._pass(batch, labels)

    def _pass(self, batch: slice, labels: Tensor) -> None:
        """Go forward and back through one batch; the rule takes the gradients."""
        z = self._head.forward(batch)
        for layer in self._layers:
            z = layer.forward(z, train=True)
        gradient = self._loss_gradient(z, labels[:, batch])
        for layer in reversed(self._layers):
            gradient = layer.backward(gradient)
        self._head.update(gradient, batch)

    def _loss_gradient(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return ``(softmax - one-hot) / rows`` times the rule's factor.

        The softmax is exp(log-softmax): along this dimension torch computes both alike
        for every position in memory, which does not hold for its softmax.
        """
        by_class = logits.transpose(1, 2).contiguous()
        gradient = torch.log_softmax(by_class, 1).exp_()
        target = labels[:, None, :]
        gradient.scatter_add_(1, target, self._minus_one.expand(target.shape))
        gradient.mul_(self._rule.gradient_scale / labels.shape[1])
        return gradient.transpose(1, 2)

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Run blocks of the training points through every network."""
        loss: Tensor | float = 0.0
        right: Tensor | int = 0
        for start in range(0, self._n, BLOCK):
            stop = min(start + BLOCK, self._n)
            z = self._head.rows(start, stop)
            for layer in self._layers:
                z = layer.forward(z, train=False)
            scores = torch.log_softmax(z.transpose(1, 2).contiguous(), 1)
            target = self._y[start:stop].expand(self._work.count, 1, -1)
            chosen = scores.gather(1, target)
            loss = loss - chosen.sum((1, 2))
            right = right + (chosen[:, 0] >= scores.amax(1)).sum(1)
        assert isinstance(loss, Tensor)
        assert isinstance(right, Tensor)
        return loss.cpu().double() / self._n, right.cpu()

    def write(self, slot: int, model: nn.Module) -> None:
        """Copy layer by layer."""
        with torch.no_grad():
            for layer, module in zip((self._head, *self._layers), _modules(model), strict=True):
                if not isinstance(layer, ActivationLayer):
                    layer.write(slot, module)  # type: ignore[attr-defined]

    def move(self, source: int, target: int) -> None:
        """Move every stacked tensor."""
        for entry in self._stacks():
            entry.move(source, target)

    def narrow(self, count: int) -> None:
        """Narrow every stacked tensor and the scratch buffers."""
        for entry in self._stacks():
            entry.narrow(count)
        self._work.count = count

    def _stacks(self) -> list[Stacked]:
        stacks = [*self._head.stacks(), *self._rule.states()]
        for layer in self._layers:
            if isinstance(layer, (Affine, BatchNorm, SlopeLayer)):
                stacks += layer.stacks()
        return stacks

    def _layer(self, column: Sequence[nn.Module], *, last: bool) -> Layer:
        first = column[0]
        if isinstance(first, nn.Linear):
            return Affine(column, self._rule, self._work, last=last)  # type: ignore[arg-type]
        if isinstance(first, nn.BatchNorm1d):
            return BatchNorm(column, self._rule)  # type: ignore[arg-type]
        if isinstance(first, nn.PReLU):
            return SlopeLayer(column, self._rule)  # type: ignore[arg-type]
        # Working in place would overwrite what an activation just before keeps.
        after = bool(self._layers) and isinstance(self._layers[-1], ActivationLayer)
        return ActivationLayer(formula(first), in_place=not after)


def _modules(model: nn.Module) -> list[nn.Module]:
    steps = read_perceptron(model, training=True)
    assert steps is not None
    return [step.module for step in steps if step.module is not None]
