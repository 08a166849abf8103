"""What trains a set of networks in lockstep: the interface, and perceptrons by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invariance.training._augmentation import View
from invariance.training._options import Options
from invariance.training._sam import Climbing
from invariance.training.perceptrons._activations import Activation, formula
from invariance.training.perceptrons._first_layer import Head, make_head
from invariance.training.perceptrons._layers import Affine, BatchNorm, Layer, Slope
from invariance.training.perceptrons._stacked import Stacked, Workspace
from invariance.training.perceptrons._update_rules import Rule, make_rule

#: Rows that an evaluation looks at in one go; fixed, so that the results are, too.
BLOCK = 2048


class Engine(Protocol):
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
        columns = [column for column in _columns(models) if not _passive(column[0])]
        self._head: Head = make_head(
            columns[0],  # type: ignore[arg-type]
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
        if type(model) is not nn.Sequential or model._forward_hooks or model._forward_pre_hooks:
            return False
        layers = [layer for layer in model if not _passive(layer)]
        parameters = list(model.parameters())
        return (
            bool(layers)
            and isinstance(layers[0], nn.Linear)
            and all(_known(layer) for layer in layers)
            and all(parameter.requires_grad for parameter in parameters)
            and sum(len(list(layer.parameters())) for layer in layers) == len(parameters)
            and len({id(layer) for layer in layers}) == len(layers)
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
        assert isinstance(model, nn.Sequential)
        modules = [module for module in model if not _passive(module)]
        with torch.no_grad():
            for layer, module in zip((self._head, *self._layers), modules, strict=True):
                if not isinstance(layer, Activation):
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
            if isinstance(layer, (Affine, BatchNorm, Slope)):
                stacks += layer.stacks()
        return stacks

    def _layer(self, column: Sequence[nn.Module], *, last: bool) -> Layer:
        first = column[0]
        if isinstance(first, nn.Linear):
            return Affine(column, self._rule, self._work, last=last)  # type: ignore[arg-type]
        if isinstance(first, nn.BatchNorm1d):
            return BatchNorm(column, self._rule)  # type: ignore[arg-type]
        if isinstance(first, nn.PReLU):
            return Slope(column, self._rule)  # type: ignore[arg-type]
        what = formula(first)
        assert what is not None
        # Working in place would overwrite what an activation just before keeps.
        after = bool(self._layers) and isinstance(self._layers[-1], Activation)
        return Activation(what, in_place=not after)


def _columns(models: Sequence[nn.Sequential]) -> list[tuple[nn.Module, ...]]:
    return list(zip(*models, strict=True))


def _passive(layer: nn.Module) -> bool:
    """Say whether a layer does nothing to rows of features."""
    return type(layer) is nn.Identity or (
        type(layer) is nn.Flatten and layer.start_dim == 1 and layer.end_dim == -1
    )


def _known(layer: nn.Module) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if type(layer) is nn.BatchNorm1d:
        return layer.track_running_stats and layer.running_mean is not None
    return type(layer) in (nn.Linear, nn.PReLU) or formula(layer) is not None
