from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from modicum.errors import InvalidSetting, UnknownName, UnusableData
from modicum.evaluate import Comparison, Measurements, Protocol, agreement, compare, memory_size, perplexity

Tiny = Callable[..., LlamaForCausalLM]
LAYER = {"name": "model.layers.0.self_attn.q_proj", "block": 0, "role": "q", "sparsity": 0.5, "nbytes": 10}


def test_everything_measured_survives_json(
    tiny: Tiny, tokens: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    before, after = tiny(0), tiny(1)
    before.save_pretrained(tmp_path / "before")
    stages: set[str] = set()
    result = compare(
        before,
        after,
        tokenizer,
        tokens,
        before_dir=tmp_path / "before",
        layers=[LAYER],
        recipe={"steps": [{"method": "magnitude", "sparsity": 0.5}]},
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert result.before.perplexity == perplexity(before, tokens, 64).ppl
    assert result.agreement == agreement(before, after, tokens, 64)
    assert result.before.disk_bytes == (tmp_path / "before" / "model.safetensors").stat().st_size
    assert result.after.disk_bytes is None  # no directory was given
    assert result.after.memory_bytes == memory_size(after)
    assert result.after.peak_bytes is None or result.after.peak_bytes >= memory_size(after)
    assert result.decode_ratio is not None
    assert len(result.samples) == 3
    assert stages == {"perplexity before", "perplexity after", "agreement", "samples"}
    assert Comparison.load(result.save(tmp_path / "report.json")) == result
    assert json.loads((tmp_path / "report.json").read_text())["format"] == 1
    assert [path.name for path in tmp_path.glob("report*")] == ["report.json"]  # no temporary file stays


@pytest.mark.parametrize("what", [[], ["size"], ["quality"], ["speed"], ["memory"]])
def test_what_was_not_asked_for_is_none(tiny: Tiny, tokens: torch.Tensor, what: list[str]) -> None:
    result = compare(tiny(), tiny(), None, tokens, what=what)
    found = {name for name, value in result.after if value is not None}
    fields = {"quality": {"perplexity"}, "size": {"memory_bytes"}, "memory": {"peak_bytes"}}
    fields["speed"] = {"prefill", "decode"}
    assert found == set().union(*(fields[each] for each in what))
    assert (result.agreement is None) == ("quality" not in what)
    assert result.samples == ()


def test_samples_start_from_the_prompts_given(tiny: Tiny, tokens: torch.Tensor, tokenizer: Any) -> None:
    result = compare(tiny(0), tiny(1), tokenizer, tokens, what=["samples"], prompts=["ab", "cd"])
    assert [sample.prompt for sample in result.samples] == ["ab", "cd"]
    assert all(sample.before != sample.after for sample in result.samples)


def test_mistakes_are_named(tiny: Tiny, tokens: torch.Tensor) -> None:
    with pytest.raises(UnknownName, match="'quality'"):
        compare(tiny(), tiny(), None, tokens, what=["qualty"])
    with pytest.raises(InvalidSetting, match="tokenizer"):
        compare(tiny(), tiny(), None, tokens, what=["samples"])
    with pytest.raises(InvalidSetting, match="window"):
        compare(tiny(), tiny(), None, tokens, what=["quality"], protocol=Protocol(window=100))
    with pytest.raises(ValidationError, match="sparsty"):
        compare(tiny(), tiny(), None, tokens, what=[], layers=[{"name": "a", "role": "q", "sparsty": 0.5}])


@given(st.integers(8, 5000), st.integers(2, 5000), st.integers(2, 300_000))
@settings(deadline=None, max_examples=60)
def test_the_default_protocol_fits_the_model_and_the_text(context: int, tokens: int, vocabulary: int) -> None:
    model = torch.nn.Module()
    model.config = type("Config", (), {"max_position_embeddings": context, "vocab_size": vocabulary})()
    protocol = Protocol.fitting(model, tokens)
    assert protocol.window <= context
    assert protocol.batch == 1 or protocol.batch * protocol.window * vocabulary <= 2**28
    assert protocol.prefill_tokens + protocol.decode_tokens <= context
    assert protocol.prefill_tokens <= tokens
    assert 1 <= protocol.sample_tokens <= context


def test_infinity_is_valid_json(tmp_path: Path) -> None:
    result = Comparison(after=Measurements(perplexity=math.inf))
    text = result.save(tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Comparison.load(tmp_path / "report.json") == result


def test_files_that_are_no_comparison_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(UnusableData, match="Cannot read"):
        Comparison.load(path)
    for text in ('{"format": 2}', '{"before": ', "[]", '{"typo": 1}'):
        path.write_text(text)
        with pytest.raises(UnusableData, match="not a comparison of format 1"):
            Comparison.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UnusableData, match="not a comparison"):
        Comparison.load(path)
