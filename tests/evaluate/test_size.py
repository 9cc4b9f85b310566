from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from modicum.errors import CheckpointError
from modicum.evaluate import by_layer, disk_size, memory_size

Tiny = Callable[..., LlamaForCausalLM]


def test_tied_weights_count_once(tiny: Tiny) -> None:
    tied, untied = tiny(tie_word_embeddings=True), tiny(tie_word_embeddings=False)
    assert memory_size(untied) - memory_size(tied) == 128 * 32 * 4
    assert "lm_head" not in by_layer(tied)
    assert by_layer(untied)["lm_head"] == 128 * 32 * 4


def test_parameters_and_buffers_are_counted_in_their_own_dtype() -> None:
    layer = nn.Linear(8, 4, bias=False, dtype=torch.bfloat16)
    layer.register_buffer("codes", torch.zeros(5, dtype=torch.uint8))
    assert memory_size(layer) == 8 * 4 * 2 + 5


def test_views_of_one_storage_count_once_and_in_full() -> None:
    whole = torch.zeros(10, 10)
    model = nn.Module()
    model.register_buffer("top", whole[:2])
    model.register_buffer("bottom", whole[8:])
    assert memory_size(model) == 400


def test_layers_sum_to_the_model(tiny: Tiny) -> None:
    model = tiny()
    assert sum(by_layer(model).values()) == memory_size(model)
    assert by_layer(model)["model.layers.1.self_attn.k_proj"] == 16 * 32 * 4


def test_unallocated_weights_are_counted_by_shape() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert memory_size(model) == 2 * 4 * 4 * 4


def test_weight_files_are_told_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "model-2.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "config.json").write_bytes(b"{}")
    assert disk_size(tmp_path) == (150, 152)


def test_links_count_as_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 100)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert disk_size(tmp_path / "snapshot").weights == 100


def test_a_directory_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        disk_size(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        disk_size(tmp_path / "missing")
