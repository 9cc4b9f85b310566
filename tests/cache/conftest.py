"""A stack of layers without a model: random queries, keys and values go through a cache, map by map."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.cache.policy import CacheMethod, CachePolicy
from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig
from modicum.models.next_scale import Queries, Schedule
from modicum.models.var import VAR, VAEConfig, VARConfig


@dataclass
class Layers:
    """Inputs of some layers over a schedule; the first channel of a value is the token's place in the sequence."""

    schedule: Schedule
    layers: int = 2
    rows: int = 2
    heads: int = 3
    head_dim: int = 4
    seed: int = 0
    _keys: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def tensors(self, layer: int, scale: int) -> tuple[Tensor, Tensor, Queries]:
        """Keys, values and queries of a map."""
        generator = torch.Generator().manual_seed(1000 * self.seed + 50 * layer + scale)
        shape = (self.rows, self.heads, self.schedule.tokens[scale], self.head_dim)
        q, raw, k, v = torch.randn(4, *shape, generator=generator)
        v[..., 0] = torch.arange(self.schedule.offsets[scale], self.schedule.offsets[scale + 1])
        heads = self.heads

        def project(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        return k, v, Queries(raw.transpose(1, 2).flatten(2), project, q, 0.5)

    def everything(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all maps, `[rows, heads, total, head_dim]`."""
        parts = [self.tensors(layer, scale)[:2] for scale in range(len(self.schedule))]
        keys, values = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        return keys, values

    def run(self, cache: Any) -> Iterator[tuple[int, int]]:
        """Send all maps through a cache; yields (scale, layer) after every choice."""
        cache.begin(self.schedule)
        for scale in range(len(self.schedule)):
            for layer in range(self.layers):
                keys, values, queries = self.tensors(layer, scale)
                cache.extend(layer, keys, values)
                cache.settle(layer, scale, queries)
                yield scale, layer


def places(cache: Any, layer: int) -> Tensor:
    """Which tokens of the sequence a layer holds, int64 `[rows, heads, held]`."""
    return cache.held(layer)[1][..., 0].long()


def policy_of(method: CacheMethod, schedule: Schedule, layers: int, uniform: int) -> CachePolicy:
    """A method fitted to no model in particular."""
    return CachePolicy(method, method.table(schedule, layers, uniform), uniform)


@pytest.fixture(scope="session")
def tiny_var() -> VAR:
    """A random VAR whose every parameter matters."""
    vae = VAEConfig(vocab_size=24, z_channels=4, ch=8, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=4)
    torch.manual_seed(0)
    model = VAR(
        VARConfig(num_classes=5, depth=3, embed_dim=24, num_heads=3, patch_nums=(1, 2, 3, 4, 5), vae=vae)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="session")
def tiny_infinity() -> Infinity:
    """A random Infinity whose every parameter matters."""
    vae = BSQVAEConfig(codebook_dim=4, base_ch=24, ch_mult=(1, 2), num_res_blocks=1, patch_size=2)
    torch.manual_seed(0)
    model = Infinity(
        InfinityConfig(
            embed_dim=24,
            depth=2,
            num_heads=3,
            mlp_ratio=8.0,
            text_channels=128,
            text_maxlen=12,
            pixels="0.06M",
            vae=vae,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="session")
def lab() -> Any:
    """The functions and classes of this file."""
    return sys.modules[__name__]
