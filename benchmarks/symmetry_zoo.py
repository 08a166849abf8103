"""Symmetries of architectures that people bring: what is found, what keeps the function, how fast.

Run: ``python benchmarks/symmetry_zoo.py --out benchmarks/results/symmetry_zoo``. Every model of
timm, torchvision and transformers is built with random weights and random BatchNorm statistics,
in a process of its own with a time limit; libraries that are missing are skipped. Finished models
are kept in ``<out>.json`` and not run again. ``<out>.md`` is the table.

A row gives groups by kind, degrees of freedom, which transforms kept the function (with the
largest error relative to the output's scale), why the others were refused, the analysis' time in
forward passes of the same model, and the groups that torch-pruning's DepGraph finds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

TIMM = [
    "resnet18",
    "resnet50",
    "resnetv2_50",
    "seresnet18",
    "ecaresnet26t",
    "resnext26ts",
    "res2net50_26w_4s",
    "nf_resnet26",
    "dm_nfnet_f0",
    "eca_nfnet_l0",
    "convnext_atto",
    "convnextv2_atto",
    "poolformer_s12",
    "cait_xxs24_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "mixer_s16_224",
    "edgenext_xx_small",
    "hgnetv2_b0",
    "focalnet_tiny_srf",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "xcit_nano_12_p16_224",
    "crossvit_tiny_240",
    "volo_d1_224",
    "twins_pcpvt_small",
    "visformer_tiny",
    "pvt_v2_b0",
    "levit_128s",
    "fastvit_t8",
    "coatnet_nano_rw_224",
    "maxvit_rmlp_pico_rw_256",
    "davit_tiny",
    "tiny_vit_5m_224",
    "nextvit_small",
    "efficientformer_l1",
    "mobilevit_xxs",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mnasnet_100",
    "ghostnet_100",
    "rexnet_100",
    "regnety_002",
    "regnetx_002",
    "repvgg_a0",
    "vgg11",
    "vgg11_bn",
    "densenet121",
    "dla34",
    "hrnet_w18_small",
    "inception_v3",
    "inception_next_tiny",
    "xception41",
    "selecsls42",
    "cspresnet50",
    "cspdarknet53",
    "starnet_s1",
    "sequencer2d_s",
    "convmixer_768_32",
]
TORCHVISION = [
    "alexnet",
    "vgg11",
    "vgg11_bn",
    "resnet18",
    "resnet34",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "squeezenet1_0",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "convnext_tiny",
    "swin_t",
    "swin_v2_t",
    "vit_b_16",
    "maxvit_t",
]
#: The classes' names; the configuration is shrunk by every name that it understands.
TRANSFORMERS = [
    "Bert",
    "Roberta",
    "Electra",
    "DistilBert",
    "Albert",
    "MobileBert",
    "ConvBert",
    "RoFormer",
    "MPNet",
    "Deberta",
    "DebertaV2",
    "XLNet",
    "XLM",
    "Longformer",
    "Nystromformer",
    "GPT2",
    "GPTNeo",
    "GPTNeoX",
    "GPTJ",
    "OPT",
    "Bloom",
    "Falcon",
    "Llama",
    "Mistral",
    "Mixtral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Phi",
    "Phi3",
    "StableLm",
    "Starcoder2",
    "Olmo",
    "Olmo2",
    "Cohere",
    "Persimmon",
    "MptModel",
    "Codegen",
    "Mamba",
    "Rwkv",
    "T5Encoder",
    "FNet",
    "Funnel",
    "SqueezeBert",
]
SMALL = {
    "vocab_size": 50, "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "n_layer": 2,
    "num_hidden_layers": 2, "num_layers": 2, "n_layers": 2, "n_head": 4, "n_heads": 4,
    "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "hidden_dim": 64, "d_inner": 64, "embedding_size": 32, "head_dim": 8, "rotary_dim": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def everything() -> list[str]:
    """Return ``library:model`` of all rows."""
    rows = [f"timm:{name}" for name in TIMM]
    rows += [f"torchvision:{name}" for name in TORCHVISION]
    return rows + [f"transformers:{name}" for name in TRANSFORMERS]


def build(row: str) -> tuple[Any, Any]:
    """Build a model and a small input that it accepts."""
    import torch
    from torch import nn

    library, name = row.split(":")
    torch.manual_seed(0)
    if library == "transformers":
        import transformers

        kind = name if name.endswith(("Model", "Encoder")) else name + "Model"
        kind += "Model" if name.endswith("Encoder") else ""
        config_name = name.removesuffix("Model").removesuffix("Encoder") + "Config"
        config_kind = getattr(transformers, config_name)
        known = config_kind()
        config = config_kind(**{k: v for k, v in SMALL.items() if hasattr(known, k)})

        class Hidden(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = getattr(transformers, kind)(config)

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                hidden: torch.Tensor = self.model(tokens)[0]
                return hidden

        model: nn.Module = Hidden()
        inputs = [torch.randint(1, 50, (2, 7))]
    else:
        if library == "timm":
            import timm

            model = timm.create_model(name)
        else:
            import torchvision

            extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            model = getattr(torchvision.models, name)(weights=None, **extra)
        inputs = [torch.randn(1, 3, size, size) for size in (64, 224, 240, 256)]
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    model.eval()
    for x in inputs[:-1]:
        try:
            with torch.no_grad():
                model(x)
            return model, x
        except (RuntimeError, AssertionError, ValueError):
            continue
    return model, inputs[-1]


def measure(row: str) -> dict[str, Any]:
    """Analyse one model and try the transforms on it."""
    import torch

    from invariance.core._errors import TransformError
    from invariance.symmetry import symmetries
    from invariance.transforms import (
        FoldBatchNorm,
        LinearMixing,
        NeuronScaling,
        Permutation,
        SignFlip,
        Translation,
    )

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        model, x = build(row)
        with torch.no_grad():
            passes = []
            for _ in range(3):
                start = time.perf_counter()
                model(x)
                passes.append(time.perf_counter() - start)
    except Exception as error:  # the library's own affair
        return {"model": row, "skipped": f"{type(error).__name__}: {error}"[:200]}
    start = time.perf_counter()
    try:
        found = symmetries(model, x)
    except TransformError as error:
        return {"model": row, "refused": str(error)[:200]}
    seconds = time.perf_counter() - start
    kept, errors, refused = [], [0.0], {}
    for transform in (
        NeuronScaling(2.0), Permutation(), SignFlip(), LinearMixing(), Translation(),
        FoldBatchNorm(),
    ):  # fmt: skip
        name = type(transform).__name__
        try:
            seen = transform.apply(model, x).verification
        except TransformError as error:
            refused[name] = str(error)[:160]
            continue
        kept.append(name)
        errors.append(seen.max_abs_logit_diff / max(seen.output_scale, 1e-30))
    return {
        "model": row,
        "groups": dict(Counter(str(group.kind) for group in found.groups)),
        "degrees": sum(group.dof for group in found.groups),
        "kept": kept,
        "largest error": max(errors),
        "forward passes": round(seconds / min(passes), 1),
        "refused": refused,
        "wrong": sorted(n for n, why in refused.items() if "changed the function" in why),
        "DepGraph": depgraph(model, x),
    }


def depgraph(model: Any, x: Any) -> str:
    """Count the groups that torch-pruning finds."""
    try:
        import torch_pruning

        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
        return str(sum(1 for _ in graph.get_all_groups()))
    except Exception as error:  # another package's affair
        return type(error).__name__


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as markdown."""
    kinds = ["permutation", "scaling", "sign_flip", "linear_mixing", "translation"]
    lines = [
        "| model | " + " | ".join(kinds) + " | degrees | kept | largest error | forward passes | "
        "DepGraph | remarks |",
        "|---" * (len(kinds) + 7) + "|",
    ]
    for row in rows:
        if "groups" not in row:
            why = next(f"{k}: {row[k]}" for k in ("skipped", "refused", "failed") if k in row)
            why = why.replace("|", "/").replace("\n", " ")[:120]
            lines.append(f"| {row['model']} " + "| " * (len(kinds) + 5) + f"| {why} |")
            continue
        counts = " | ".join(str(row["groups"].get(kind, 0)) for kind in kinds)
        wrong = f"WRONG: {', '.join(row['wrong'])}" if row["wrong"] else ""
        lines.append(
            f"| {row['model']} | {counts} | {row['degrees']} | {', '.join(row['kept'])} | "
            f"{row['largest error']:.1e} | {row['forward passes']} | {row['DepGraph']} | {wrong} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="library:model; all without")
    parser.add_argument("--out", type=Path, default=Path("symmetry_zoo"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(measure(given.one)))
        return
    record = given.out.with_suffix(".json")
    rows = json.loads(record.read_text()) if record.exists() else []
    record.parent.mkdir(parents=True, exist_ok=True)
    for row in given.models or everything():
        if any(done["model"] == row for done in rows):
            continue
        command = [sys.executable, __file__, "--one", row]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=given.limit, check=False
            )
            lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
            tail = (ran.stderr.strip().splitlines() or ["no output"])[-1]
            result = json.loads(lines[-1][7:]) if lines else {"model": row, "failed": tail[:200]}
        except subprocess.TimeoutExpired:
            result = {"model": row, "failed": f"no end within {given.limit:g} s"}
        rows.append(result)
        record.write_text(json.dumps(rows, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(rows))
        print(table([result]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
