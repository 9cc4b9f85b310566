"""Integer weights in the layout of compressed-tensors, which transformers and vLLM read without modicum.

The tensors of `PackedWeight` already have that layout (`pack-quantized`), so what is left to write is the
`quantization_config` of config.json: one group per integer scheme, and the linear layers that stay dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from modicum.kernels.grids import IntegerScheme

VERSION = "0.20.0"
FORMAT = "pack-quantized"
INITIALIZING = ("MambaMixer",)
"""Modules that initialize their layers' dense weights themselves, also where packed ones have taken their place."""


def expressible(modules: Mapping[str, nn.Module], schemes: Mapping[str, IntegerScheme]) -> bool:
    """Whether transformers can read every packed layer: an nn.Linear whose inputs divide into whole groups.

    Args:
        modules: the modules of the model by name.
        schemes: the integer scheme of each packed layer by name.
    """
    return all(
        isinstance(module := modules.get(name), nn.Linear)
        and type(modules.get(name.rpartition(".")[0])).__name__ not in INITIALIZING
        and (scheme.group_size == -1 or module.in_features % scheme.group_size == 0)
        for name, scheme in schemes.items()
    )


def quantization_config(linears: Iterable[str], schemes: Mapping[str, IntegerScheme]) -> dict[str, Any]:
    """The `quantization_config` entry of config.json.

    Args:
        linears: names of all nn.Linear modules of the model.
        schemes: the integer scheme of each packed layer.
    """
    groups: dict[IntegerScheme, list[str]] = {}
    for name, scheme in schemes.items():
        groups.setdefault(scheme, []).append(name)
    single = len(groups) == 1
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": FORMAT,
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if single else sorted(names),
                "format": FORMAT,
                "weights": _weights(scheme),
                "input_activations": None,
                "output_activations": None,
            }
            for i, (scheme, names) in enumerate(groups.items())
        },
        "ignore": sorted(name for name in linears if name not in schemes),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": VERSION,
    }
    if not all(scheme.symmetric for scheme in groups):
        # transformers cannot keep packed zero points in memory; it opens them when told to decompress while loading
        config["dequantize"] = True
    return config


def _weights(scheme: IntegerScheme) -> dict[str, Any]:
    whole_row = scheme.group_size == -1
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if whole_row else "group",
        "group_size": None if whole_row else scheme.group_size,
        "dynamic": False,
    }
