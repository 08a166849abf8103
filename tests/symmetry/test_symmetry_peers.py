"""Models of torchvision, timm and transformers go through every transform unchanged.

Skipped where these libraries are missing: nothing in the package needs them.
"""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from torch import nn

from invariance.core._errors import TransformError
from invariance.symmetry import symmetries
from invariance.transforms import (
    BatchNormScaling,
    FoldBatchNorm,
    NeuronScaling,
    Permutation,
    SignFlip,
)

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def library(name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} cannot be imported here: {error}")


def settle(model):
    stream = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.1, generator=stream)
            module.running_var.uniform_(0.5, 2, generator=stream)
    return model.double().eval()


def check(model, x, needed, *, tolerance=1e-10):
    assert {group.kind.value for group in symmetries(model, x).groups} >= needed
    went = 0
    for transform in (
        NeuronScaling(3.0),
        Permutation(),
        SignFlip(),
        FoldBatchNorm(),
        BatchNormScaling(1.5),
    ):
        try:
            verification = transform.apply(model, x).verification
        except TransformError as error:
            reason = str(error)
            refused = "does not apply" in reason or "cannot fold" in reason
            assert refused, reason
            continue
        went += 1
        assert verification.max_abs_logit_diff <= tolerance * verification.output_scale, transform
    assert went


NORMED = {"permutation", "sign_flip", "batchnorm_affine", "batchnorm_weight_scale"}


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("resnet18", NORMED),
        ("vgg11_bn", NORMED | {"scaling"}),
        ("densenet121", {"permutation", "batchnorm_affine"}),
        ("mobilenet_v2", {"permutation", "sign_flip"}),
        ("squeezenet1_1", {"permutation", "scaling"}),
        ("shufflenet_v2_x0_5", NORMED),
    ],
)
def test_torchvision(name, needed):
    models = library("torchvision.models")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    check(settle(getattr(models, name)(weights=None)), x, needed)


@pytest.mark.parametrize(
    ("name", "size", "options", "needed"),
    [
        ("seresnet18", 64, {}, NORMED),
        ("resnetv2_50", 64, {}, {"permutation", "batchnorm_affine"}),
        ("repvgg_a0", 64, {}, {"permutation", "batchnorm_affine"}),
        ("vit_tiny_patch16_224", 224, {"depth": 1}, {"permutation", "linear_mixing"}),
    ],
)
def test_timm(name, size, options, needed):
    timm = library("timm")
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    check(settle(timm.create_model(name, pretrained=False, **options)), x, needed)


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
def test_transformers(name):
    transformers = library("transformers")
    common = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 4, "intermediate_size": 24}
    if name == "GPT2":
        common = {"vocab_size": 99, "n_embd": 16, "n_layer": 2, "n_head": 4}
    kind = "ForSequenceClassification" if name == "Bert" else "LMHeadModel"
    kind = "ForCausalLM" if name == "Llama" else kind
    try:
        build = getattr(transformers, name + kind)
    except ImportError as error:  # transformers imports each model only when it is named
        pytest.skip(f"{name} cannot be imported here: {error}")
    model = build(getattr(transformers, name + "Config")(**common))
    tokens = torch.randint(0, 99, (1, 7), generator=torch.Generator().manual_seed(0))
    # Llama's norms and rotations compute in float32 whatever the network's type is.
    tolerance = 1e-6 if name == "Llama" else 1e-10
    check(settle(Logits(model)), tokens, {"permutation", "scaling"}, tolerance=tolerance)
