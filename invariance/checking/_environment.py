"""What a reader needs to repeat a result: versions, task and model in plain words."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import scipy
import torch
from torch import nn

from invariance.core._modules import model_device, weight_layers
from invariance.core._reproducible import reproducible_kernels
from invariance.data import Task


def describe_environment(dtype: torch.dtype) -> dict[str, Any]:
    """Return versions and settings that can change the last digits of a number."""
    from invariance.core._version import __version__

    return {
        "invariance": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "reproducible_kernels": reproducible_kernels(),
        "cuda": torch.cuda.is_available(),
        "machine": platform.machine(),
    }


def describe_task(task: Task) -> dict[str, Any]:
    """Return a task's name, sizes and origin."""
    return {
        "name": task.name,
        "source": task.source,
        "n_train": int(task.x_train.shape[0]),
        "n_test": int(task.x_test.shape[0]),
        "n_unseen": int(task.x_unseen.shape[0]),
        "n_classes": task.n_classes,
    }


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return a model's kind, weight layers and size."""
    return {
        "kind": type(model).__name__,
        "weight_layers": {
            name: list(getattr(layer, "weight").shape)  # noqa: B009 - typed as Tensor | Module
            for name, layer in weight_layers(model)
        },
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(model_device(model)),
        "modules": [type(module).__name__ for module in model.children()],
    }
