"""Engines for modules of any kind: one network at a time, or vectorised by ``torch.func``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from invariance.core._modules import clone
from invariance.core._rng import generator
from invariance.training._augmentation import View
from invariance.training._engine import BLOCK
from invariance.training._options import Options
from invariance.training._sam import climb
from invariance.training.perceptrons._stacked import Stacked, stack
from invariance.training.perceptrons._update_rules import make_rule

#: Layers that draw random numbers in train mode.
_STOCHASTIC = (nn.modules.dropout._DropoutNd, nn.RReLU)


def stochastic(model: nn.Module) -> bool:
    """Say whether a layer of ``model`` draws random numbers while it trains."""
    return any(
        isinstance(module, _STOCHASTIC) and getattr(module, "p", 1.0) > 0
        for module in model.modules()
    )


class SingleEngine:
    """Each network by itself with autograd and ``torch.optim``: what one would write by hand.

    Nothing that one network computes depends on another, so results are the same in any
    ensemble: to the last bit where kernels are reproducible. Random layers draw from a
    stream of the network's own.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        seeds: Sequence[int],
        x: Tensor,
        y: Tensor,
        options: Options,
    ) -> None:
        self._models = [clone(model).train() for model in models]
        self._optimizers = [_optimizer(model, options) for model in self._models]
        self._seeds = list(seeds)
        self._x, self._y, self._options = x, y, options
        self._epoch = 0

    def run_epoch(self, order: Tensor | None, rate: float, view: View | None = None) -> None:
        """Train one network after another."""
        self._epoch += 1
        for slot, model in enumerate(self._models):
            for group in self._optimizers[slot].param_groups:
                group["lr"] = rate
            changes = None if view is None else view.of(slot)
            with _own_noise(self._seeds[slot], self._epoch, self._x.device):
                model.train()
                for batch in self._options.batches(len(self._y)):
                    index: Tensor | slice = batch if order is None else order[slot, batch]
                    x, y = self._x[index], self._y[index]
                    if changes is not None:
                        which = index if isinstance(index, slice) else index[None]
                        x = changes.apply(x[None], which)[0]
                    self._step(slot, x, y)

    def _step(self, slot: int, x: Tensor, y: Tensor) -> None:
        """Take one step of one network, after a climb if there is one."""
        model, optimizer = self._models[slot], self._optimizers[slot]
        if not self._options.sam_rho:
            _backward(model, x, y)
            optimizer.step()
            return
        noise = _noise_state(x.device) if stochastic(model) else None
        _backward(model, x, y)
        moved = [entry for entry in model.parameters() if entry.grad is not None]
        before = [entry.detach().clone() for entry in moved]
        moves = climb(
            [entry.detach()[None] for entry in moved],
            [entry.grad[None] for entry in moved if entry.grad is not None],
            self._options,
        )
        # Running statistics belong to the weights: what the second pass adds is undone.
        statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
        if noise is not None:  # the same random masks in both passes: one loss, not two
            _restore_noise(noise, x.device)
        with torch.no_grad():
            for entry, move in zip(moved, moves, strict=True):
                entry.add_(move[0])
        _backward(model, x, y)
        with torch.no_grad():
            for entry, value in zip(moved, before, strict=True):
                entry.copy_(value)
            for buffer, value in statistics:
                buffer.copy_(value)
        optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Run blocks of the training points through every network."""
        losses, counts = [], []
        for model in self._models:
            model.eval()
            loss, right = 0.0, 0
            for start in range(0, len(self._y), BLOCK):
                target = self._y[start : start + BLOCK]
                logits = model(self._x[start : start + BLOCK])
                loss += float(F.cross_entropy(logits, target, reduction="sum"))
                right += int((logits.argmax(1) == target).sum())
            losses.append(loss / len(self._y))
            counts.append(right)
        return torch.tensor(losses, dtype=torch.float64), torch.tensor(counts)

    def write(self, slot: int, model: nn.Module) -> None:
        """Copy parameters and buffers."""
        model.load_state_dict(self._models[slot].state_dict())

    def move(self, source: int, target: int) -> None:
        """Let the target's slot hold the source."""
        self._models[target] = self._models[source]
        self._optimizers[target] = self._optimizers[source]
        self._seeds[target] = self._seeds[source]

    def narrow(self, count: int) -> None:
        """Forget the rest."""
        del self._models[count:], self._optimizers[count:], self._seeds[count:]


class FunctionalEngine:
    """All networks in one call: ``functional_call`` under ``grad`` under ``vmap``."""

    def __init__(self, models: Sequence[nn.Module], x: Tensor, y: Tensor, options: Options) -> None:
        self._base = clone(models[0])
        self._x, self._y, self._options = x, y, options
        self._rule = make_rule(options)
        trained = {name for name, entry in models[0].named_parameters() if entry.requires_grad}
        named = [dict((*model.named_parameters(), *model.named_buffers())) for model in models]
        self._trained: dict[str, Stacked] = {}
        self._fixed: dict[str, Stacked] = {}
        for name in named[0]:
            entry = stack(tensors[name] for tensors in named)
            (self._trained if name in trained else self._fixed)[name] = entry
            if name in trained:
                self._rule.track(entry)

        def loss(
            trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> Tensor:
            logits = functional_call(self._base, (trained, fixed), (x,))
            return F.cross_entropy(logits, y) * self._rule.gradient_scale

        def scores(
            trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor
        ) -> tuple[Tensor, Tensor]:
            logits = functional_call(self._base, (trained, fixed), (x,))
            right = (logits.argmax(1) == y).sum()
            return F.cross_entropy(logits, y, reduction="sum"), right

        self._gradient = vmap(grad(loss))
        self._scores = vmap(scores, in_dims=(0, 0, None, None))

    def run_epoch(self, order: Tensor | None, rate: float, view: View | None = None) -> None:
        """Step through the batches of all networks side by side."""
        self._base.train()
        count = len(next(iter(self._trained.values())).now)
        for batch in self._options.batches(len(self._y)):
            self._rule.begin_step(rate)
            if order is None:
                x, y = self._x.expand(count, *self._x.shape), self._y.expand(count, -1)
            else:
                x, y = self._x[order[:, batch]], self._y[order[:, batch]]
            if view is not None:
                x = view.apply(x, batch if order is None else order[:, batch])
            gradients = self._gradient(_now(self._trained), _now(self._fixed), x, y)
            if self._options.sam_rho:
                gradients = self._uphill(gradients, x, y)
            for name, gradient in gradients.items():
                self._rule.direct(self._trained[name], gradient.contiguous())

    def _uphill(self, gradients: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the gradients at the point that ``gradients`` lead up to."""
        now = _now(self._trained)
        moves = climb(list(now.values()), [gradients[name] for name in now], self._options)
        above = {name: now[name] + move for name, move in zip(now, moves, strict=True)}
        # Running statistics belong to the weights: the second pass writes into copies.
        copies = {name: entry.clone() for name, entry in _now(self._fixed).items()}
        uphill: dict[str, Tensor] = self._gradient(above, copies, x, y)
        return uphill

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Run blocks of the training points through every network."""
        self._base.eval()
        loss, right = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        for start in range(0, len(self._y), BLOCK):
            block = slice(start, start + BLOCK)
            values, counts = self._scores(
                _now(self._trained), _now(self._fixed), self._x[block], self._y[block]
            )
            loss, right = loss + values.cpu().double(), right + counts.cpu()
        return loss / len(self._y), right

    def write(self, slot: int, model: nn.Module) -> None:
        """Copy parameters and buffers by name."""
        targets = dict((*model.named_parameters(), *model.named_buffers()))
        with torch.no_grad():
            for name, entry in (*self._trained.items(), *self._fixed.items()):
                targets[name].copy_(entry.now[slot])

    def move(self, source: int, target: int) -> None:
        """Move every stacked tensor."""
        for entry in self._stacks():
            entry.move(source, target)

    def narrow(self, count: int) -> None:
        """Narrow every stacked tensor."""
        for entry in self._stacks():
            entry.narrow(count)

    def _stacks(self) -> Iterator[Stacked]:
        yield from self._trained.values()
        yield from self._fixed.values()
        yield from self._rule.states()


def _now(stacks: dict[str, Stacked]) -> dict[str, Tensor]:
    return {name: entry.now for name, entry in stacks.items()}


def _backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    loss = F.cross_entropy(model(x), y)
    for parameter in model.parameters():
        parameter.grad = None
    torch.autograd.backward(loss)


def _optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = options.weight_decay
    if options.optimizer == "adam":
        return torch.optim.Adam(
            parameters, options.lr, betas=options.betas, eps=options.eps, weight_decay=decay
        )
    return torch.optim.SGD(parameters, options.lr, momentum=options.momentum, weight_decay=decay)


def _noise_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of the generators that random layers draw from."""
    own = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state()
    return torch.get_rng_state(), own


def _restore_noise(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        getattr(torch, device.type).set_rng_state(state[1])


@contextmanager
def _own_noise(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Let random layers draw from the network's own stream, and restore torch's after it."""
    value = generator(seed, "noise", epoch).initial_seed()
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(value)
            yield
    else:
        module = getattr(torch, device.type)
        index = device.index if device.index is not None else module.current_device()
        with torch.random.fork_rng(devices=[index], device_type=device.type):
            torch.default_generator.manual_seed(value)
            module.manual_seed(value)
            yield
