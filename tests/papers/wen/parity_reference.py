"""Slow, plain versions of what the compiled loops and closed forms of the study compute."""

import numpy as np
import torch

from invariance.papers.wen.flat_not_general import _kernels as kernels
from invariance.papers.wen.flat_not_general import build
from invariance.papers.wen.flat_not_general._training import _word


def sample_order(n, epochs, seed, noise):
    """The samples and label shifts that the compiled loops draw."""
    state = np.array([_word(seed)], dtype=np.uint64)
    drawn = []
    for _ in range(epochs):
        order = np.arange(n)
        kernels.shuffle(order, state)
        assert sorted(order.tolist()) == list(range(n))
        for i in order.tolist():
            shift = 0.0
            if noise:
                shift = noise if int(kernels.next_word(state)) >> 63 else -noise
            drawn.append((i, shift))
    return drawn


def train_by_autograd(recipe, problem, seed):
    """Train step by step with automatic differentiation, in float64."""
    model = build(
        recipe.architecture, dimension=problem.x_train.shape[1], width=recipe.width,
        bias=recipe.bias, floor=recipe.floor, x_train=problem.x_train, seed=seed,
        init_scale=recipe.init_scale,
    )  # fmt: skip
    parameters = list(model.parameters())
    x, y = problem.x_train, problem.y_train

    def add(direction, factor):
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.add_(part, alpha=float(factor))

    def gradient(i, target):
        return torch.autograd.grad((model(x[i : i + 1])[0, 0] - target) ** 2, parameters)

    if recipe.algorithm in ("gd", "trace"):
        for phase in recipe.phases:
            for _ in range(phase.epochs):
                add(torch.autograd.grad(_full_loss(recipe, model, x, y), parameters), -phase.lr)
        return model
    noise = recipe.noise if recipe.algorithm == "label_noise" else 0.0
    drawn = iter(sample_order(len(x), sum(p.epochs for p in recipe.phases), seed, noise))
    for phase in recipe.phases:
        for _ in range(phase.epochs * len(x)):
            i, shift = next(drawn)
            down = gradient(i, y[i] + shift)
            if recipe.algorithm == "sam":
                up = down
                length = torch.sqrt(sum((part**2).sum() for part in up))
                add(up, phase.rho / length)
                down = gradient(i, y[i])
                add(up, -phase.rho / length)
            add(down, -phase.lr)
            if recipe.radius:
                first = list(model.get_submodule("hidden").parameters())
                size = torch.sqrt(sum((p.detach() ** 2).sum() for p in first))
                with torch.no_grad():
                    for parameter in first:
                        parameter.mul_(recipe.radius / size)
    return model


def _full_loss(recipe, model, x, y):
    outputs = model(x)[:, 0]
    loss = ((outputs - y) ** 2).mean()
    parameters = list(model.parameters())
    if recipe.algorithm == "gd":
        return loss + recipe.weight_decay / 2 * sum((p**2).sum() for p in parameters)
    total = 0
    for output in outputs:
        parts = torch.autograd.grad(output, parameters, create_graph=True)
        total = total + sum((part**2).sum() for part in parts)
    return loss + recipe.trace_weight * 2 / len(x) * total


def dense_hessian(model, x, y):
    """The Hessian of ``mean (f - y)^2`` in all parameters."""
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()])

    def loss(vector):
        parts, start = {}, 0
        for name, p in named.items():
            parts[name] = vector[start : start + p.numel()].view_as(p)
            start += p.numel()
        return ((torch.func.functional_call(model, parts, (x,))[:, 0] - y) ** 2).mean()

    return torch.autograd.functional.hessian(loss, flat)
