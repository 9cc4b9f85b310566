"""LoRA through PEFT for as long as a training lasts: W x becomes W x + (alpha / r) B A x, and afterwards W x again.

Hu et al., ICLR 2022, arXiv 2106.09685. A begins random, B zero, so the function does not change at first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from modicum.errors import MissingExtra, UnsupportedModel


@contextmanager
def lora(model: nn.Module, rank: int, alpha: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """A context in which every `nn.Linear` of `model` has an adapter and nothing else needs a gradient.

    Args:
        model: changed in place; leaving the context puts the very same layers back.
        rank: r.
        alpha: adapters are scaled by alpha / rank.
        seed: of A.

    Yields:
        The weights A and B of all adapters.

    Raises:
        MissingExtra: PEFT is not installed.
        UnsupportedModel: the model has no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra.of("peft", "train", "LoRA") from error
    targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        raise UnsupportedModel(f"{type(model).__name__} has no nn.Linear that LoRA could adapt.")
    learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=targets)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about merging adapters of tied weights; these are never merged
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    try:
        yield [p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    finally:
        _remove(model)
        for parameter, needed in learning.items():
            parameter.requires_grad_(needed)


def _remove(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
