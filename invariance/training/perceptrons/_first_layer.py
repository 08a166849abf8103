"""The first layer of a stacked perceptron: where nearly all of the arithmetic is.

Two exact ways to train the same layer, chosen by what is cheaper:

* :class:`PrimalHead` multiplies images by weights.
* :class:`GramHead` never touches an image. Plain SGD keeps the weights in the form
  ``W = s W_0 + A^T X`` with the training images X as rows, so the pre-activations of all
  training points, ``Z = X W^T``, follow ``Z <- Z - (X X^T)[:, batch] delta``, where the
  Gram matrix ``X X^T`` is the same for all networks. With n points and d pixels that is
  2 n multiplications per unit and row of a batch instead of 4 d, and looking at the
  train accuracy costs nothing in this layer instead of 2 d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invariance.training._augmentation import View
from invariance.training._options import Options
from invariance.training.perceptrons._layers import Affine
from invariance.training.perceptrons._stacked import Stacked, Workspace
from invariance.training.perceptrons._update_rules import PlainSgd, Rule

#: The Gram form is taken below this many training points a pixel. Where the arithmetic
#: breaks even, near 2, the primal form's larger matrix products run faster.
GRAM_POINTS_PER_PIXEL = 1.5


class Head(Protocol):
    """What the engine asks of the first layer."""

    def start_epoch(self, order: Tensor | None, view: View | None) -> None:
        """Take ``(networks, n)`` shuffled positions; ``None`` for one batch of all."""
        ...

    def forward(self, batch: slice) -> Tensor:
        """Return the batch's pre-activations, ``(networks, rows, width)``."""
        ...

    def update(self, gradient: Tensor, batch: slice) -> None:
        """Take the gradient by these pre-activations and update."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Return pre-activations of training points in original order, to read."""
        ...

    def write(self, slot: int, module: nn.Linear) -> None:
        """Copy one network's parameters into ``module``, which holds its start."""
        ...

    def stacks(self) -> list[Stacked]:
        """Return what moves along when a network is dropped."""
        ...


def make_head(
    modules: Sequence[nn.Linear],
    x: Tensor,
    rule: Rule,
    work: Workspace,
    options: Options,
    *,
    last: bool,
) -> Head:
    """Return the cheaper head; the choice depends on task and options alone.

    Shapes: ``x (n, d)``.
    """
    # A pixel that is zero on all training points has a zero gradient, so without weight
    # decay its weights never move: leave it out. Augmentation can move ink onto any pixel.
    fixed = not options.augmentation
    used = torch.ones_like(x[0], dtype=torch.bool)
    if rule.decay == 0 and fixed:
        used = (x != 0).any(0)
    few = len(x) <= GRAM_POINTS_PER_PIXEL * int(used.sum())
    if isinstance(rule, PlainSgd) and fixed and few:
        return GramHead(modules, x, rule, work)
    return PrimalHead(modules, x, used.nonzero()[:, 0], rule, work, last=last)


class PrimalHead:
    """Images times weights."""

    def __init__(
        self,
        modules: Sequence[nn.Linear],
        x: Tensor,
        used: Tensor,
        rule: Rule,
        work: Workspace,
        *,
        last: bool,
    ) -> None:
        self._x = x[:, used].contiguous()
        self._work = work
        self._affine = Affine(modules, rule, work, last=last, columns=used)
        self._order: Tensor | None = None
        self._view: View | None = None
        self._at: tuple[slice, Tensor] | None = None

    def start_epoch(self, order: Tensor | None, view: View | None) -> None:
        """Keep the order, and how images change."""
        self._order, self._view, self._at = order, view, None

    def forward(self, batch: slice) -> Tensor:
        """Gather the batches of all networks at once and multiply."""
        if self._at is None or self._at[0] != batch:  # a second pass sees the same images
            self._at = (batch, self._images(batch))
        return self._affine.forward(self._at[1], train=True)

    def update(self, gradient: Tensor, batch: slice) -> None:
        """Update weight and bias; nobody needs the gradient by the images."""
        self._affine.update(gradient)

    def rows(self, start: int, stop: int) -> Tensor:
        """Multiply a block of images by every network's weights."""
        block = self._x[start:stop].expand(self._work.count, -1, -1)
        return self._affine.forward(block, train=False)

    def write(self, slot: int, module: nn.Linear) -> None:
        """Copy the pixels' weights that moved; the others are still as they started."""
        self._affine.write(slot, module)

    def stacks(self) -> list[Stacked]:
        """Weight and bias."""
        return self._affine.stacks()

    def _images(self, batch: slice) -> Tensor:
        count, (n, width) = self._work.count, self._x.shape
        if self._order is None:
            every = self._x.expand(count, n, width)
            return every if self._view is None else self._view.apply(every, batch)
        index = self._order[:, batch]
        out = self._work.take((self, "images"), index.shape[1], width)
        torch.index_select(self._x, 0, index.reshape(-1), out=out.view(-1, width))
        return out if self._view is None else self._view.apply(out, index)


class GramHead:
    """Pre-activations of all training points, moved along by the Gram matrix."""

    def __init__(
        self, modules: Sequence[nn.Linear], x: Tensor, rule: PlainSgd, work: Workspace
    ) -> None:
        n, width = len(x), modules[0].out_features
        self._x, self._rule, self._work = x, rule, work
        self._biased = modules[0].bias is not None
        # Formed once, so in double precision. A bias is a pixel that is always one.
        wide = x.cpu().double()
        self._gram = (wide @ wide.T + float(self._biased)).to(x.dtype).to(x.device)
        z = x.new_empty((len(modules), n, width))
        for entry, module in zip(z, modules, strict=True):
            weight = module.weight.detach()
            if self._biased:
                torch.addmm(module.bias.detach(), x, weight.T, out=entry)
            else:
                torch.mm(x, weight.T, out=entry)
        self._z, self._a = Stacked(z), Stacked(torch.zeros_like(z))
        self._scale = 1.0
        self._order: Tensor | None = None
        self._flat: Tensor | None = None
        self._chosen: Tensor | None = None

    def start_epoch(self, order: Tensor | None, view: View | None) -> None:
        """Turn each network's order into rows of all networks' points laid end to end."""
        assert view is None  # the Gram matrix is that of the points as they are
        self._order = order
        if order is not None:
            n = self._gram.shape[0]
            offset = torch.arange(self._work.count, device=order.device) * n
            self._flat = order + offset[:, None]

    def forward(self, batch: slice) -> Tensor:
        """Pick the batch's pre-activations and rows of the Gram matrix."""
        count, (_, n, width) = self._work.count, self._z.now.shape
        if self._order is None or self._flat is None:
            self._chosen = self._gram.expand(count, n, n)
            out = self._work.take((self, "z"), n, width)
            return out.copy_(self._z.now)
        index = self._order[:, batch]
        rows = index.shape[1]
        chosen = self._work.take((self, "gram"), rows, n)
        torch.index_select(self._gram, 0, index.reshape(-1), out=chosen.view(-1, n))
        self._chosen = chosen
        out = self._work.take((self, "z"), rows, width)
        flat = self._flat[:, batch].reshape(-1)
        torch.index_select(self._z.now.view(-1, width), 0, flat, out=out.view(-1, width))
        return out

    def update(self, gradient: Tensor, batch: slice) -> None:
        """Move all pre-activations, and note the gradient for the weights."""
        assert self._chosen is not None
        shrink = self._rule.shrink
        self._z.now.baddbmm_(self._chosen.transpose(1, 2), gradient, beta=shrink, alpha=-1.0)
        if shrink != 1.0:
            self._a.now.mul_(shrink)
            self._scale *= shrink
        if self._order is None or self._flat is None:
            self._a.now.sub_(gradient)
            return
        # No point occurs twice in a batch: every row is added to once, in any order.
        self._a.now.view(-1, gradient.shape[2]).index_add_(
            0,
            self._flat[:, batch].reshape(-1),
            gradient.reshape(-1, gradient.shape[2]),
            alpha=-1,
        )

    def rows(self, start: int, stop: int) -> Tensor:
        """Look them up: they are always up to date."""
        return self._z.now[:, start:stop]

    def write(self, slot: int, module: nn.Linear) -> None:
        """Form the weights: ``s W_0 + A^T X``."""
        a = self._a.now[slot]
        start = module.weight.to(a)
        module.weight.copy_(torch.addmm(start, a.T, self._x, beta=self._scale))
        if module.bias is not None:
            module.bias.copy_(module.bias.to(a) * self._scale + a.sum(0))

    def stacks(self) -> list[Stacked]:
        """Pre-activations and coefficients."""
        return [self._z, self._a]
