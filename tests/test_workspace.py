"""The bytes that a method says it needs, held against what compressing a layer really takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modicum.calibrate.statistics import Statistics
from modicum.evaluate.memory import peak_memory
from modicum.method import LayerMethod, Target, build

MB = 1 << 20


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prune.magnitude", {}),
        ("prune.magnitude", {"scope": "row"}),
        ("prune.wanda", {}),
        ("prune.wanda", {"pattern": "2:4"}),
        ("prune.sparsegpt", {}),
        ("quantize.rtn", {}),
        ("quantize.gptq", {}),
        ("quantize.awq", {}),
    ],
)
@pytest.mark.parametrize("shape", [(4096, 1024), (768, 3072)])
def test_the_workspace_is_what_is_needed(name: str, settings: dict[str, Any], shape: tuple[int, int]) -> None:
    method = build(name, settings)
    assert isinstance(method, LayerMethod)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=random).to(torch.bfloat16)
    statistics = Statistics(method.statistics())
    statistics.update(torch.randn(512, shape[1], generator=random))
    small = Target("layer", "down", weight[:64, :256])
    method.compress(small, _of(method, random, 256))  # what the libraries keep after their first call
    measured = peak_memory(lambda: method.compress(Target("layer", "down", weight), statistics))
    if measured.method != "high-water mark":
        pytest.skip("this system does not tell the peak of one call")
    assert measured.bytes is not None
    needed = measured.bytes - measured.result.nbytes
    said = method.workspace(torch.empty_like(weight, device="meta"))
    assert 0.6 * said - 8 * MB < needed < 1.25 * said + 16 * MB


def _of(method: LayerMethod, random: torch.Generator, width: int) -> Statistics:
    statistics = Statistics(method.statistics())
    statistics.update(torch.randn(512, width, generator=random))
    return statistics
