"""Every architecture through the whole way: compress on disk, load, and get what compressing in memory gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from modicum import api
from modicum.models.skeleton import skeleton
from modicum.pipeline.recipe import parse
from modicum.weights.base import WeightForm

STEPS: dict[str, list[Any]] = {
    "magnitude": ["prune.magnitude"],
    "rtn": [{"quantize.rtn": {"group_size": 32}}],
    "wanda": [{"prune.wanda": {"pattern": "2:4"}}],
    "gptq": [{"prune.wanda": {"sparsity": 0.5}}, {"quantize.gptq": {"group_size": 32}}],
}
READERS = ("llama", "gemma", "qwen3", "phi3", "opt", "gpt2", "mixtral", "qwen2_moe", "mamba")
SEEING = ("bert", "vit", "resnet")
CASES = [
    *((name, method, form) for name in READERS for method, form in (("wanda", "modicum"), ("gptq", "auto"))),
    *((name, "magnitude", "auto") for name in ("gpt2", "mixtral", "mamba")),
    *(
        (name, method, form)
        for name in SEEING
        for method, form in (("magnitude", "auto"), ("rtn", "modicum"))
    ),
    ("resnet", "magnitude", "modicum"),
    ("vit", "magnitude", "modicum"),
]


def compressed(source: Path, steps: list[Any], out: Path, tokens: torch.Tensor, form: Any) -> Any:
    """The written directory opened again, and the same model compressed in memory."""
    recipe = parse(steps)
    hungry = any(step.statistics() for step in recipe.steps)  # type: ignore[attr-defined]
    api.prepare(source, recipe, out, data=tokens if hungry else None, form=form).execute()
    memory = api.load(source)
    api.compress(memory, recipe, data=tokens)
    return api.load(out), memory


def dense_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter of the model of the same config, with forms and packed layers decoded."""
    found = {}
    for name, _ in skeleton(model.config).named_parameters():
        owner: Any = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, WeightForm):
            leaf = name.rpartition(".")[2]
            found[name] = owner.to_dense() if leaf == "weight" else owner.bias
        else:
            found[name] = model.get_parameter(name)
    return found


@pytest.mark.parametrize(("name", "method", "form"), CASES)
def test_the_written_model_is_the_one_compressed_in_memory(
    name: str, method: str, form: str, tiny_models: Any, tokens: torch.Tensor, tmp_path: Path, toolbox: Any
) -> None:
    loaded, memory = compressed(tiny_models(name), STEPS[method], tmp_path / "out", tokens[:4], form)
    torch.testing.assert_close(toolbox.logits_of(loaded), toolbox.logits_of(memory), rtol=0, atol=1e-5)
    assert not torch.equal(toolbox.logits_of(loaded), toolbox.logits_of(api.load(tiny_models(name))))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "resnet", "gpt2"])
def test_layers_that_cannot_be_exchanged_come_back_as_they_were(
    name: str, tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    loaded, memory = compressed(tiny_models(name), STEPS["magnitude"], tmp_path / "out", tokens, "modicum")
    kinds = {type(m) for m in loaded.modules()}
    assert kinds == {type(m) for m in memory.modules()}
    assert not any(issubclass(kind, WeightForm) for kind in kinds)
    for key, value in memory.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("steps", [STEPS["magnitude"], STEPS["rtn"]], ids=["masked", "packed"])
def test_experts_that_are_touched_in_part(
    name: str, steps: list[Any], tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """Blocks with all, some and none of their expert slices compressed, in one checkpoint."""
    skip = ["*.layers.0.*", "*.layers.2.mlp.experts.1.*", "*.experts.3.up_proj", "o"]
    (step,) = steps
    method, own = (step, {}) if isinstance(step, str) else next(iter(step.items()))
    partial = [{method: {**own, "skip": skip}}]
    loaded, memory = compressed(tiny_models(name), partial, tmp_path / "out", tokens, "modicum")
    original = dense_weights(api.load(tiny_models(name)))
    found, expected = dense_weights(loaded), dense_weights(memory)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    changed = {key for key in expected if not torch.equal(found[key], original[key])}
    assert "model.layers.2.mlp.experts.gate_up_proj" in changed
    assert not any(".layers.0." in key or "o_proj" in key for key in changed)
    by_transformers = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(torch.equal(value, found[key]) for key, value in dense_weights(by_transformers).items())


def test_an_architecture_whose_owner_initializes_its_layers_avoids_compressed_tensors(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    run = api.prepare(tiny_models("mamba"), STEPS["rtn"], tmp_path / "out")
    assert run.plan.format == "modicum"


def test_every_linear_layer_of_a_llama_stays_packed(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    loaded, _ = compressed(tiny_models("llama"), STEPS["rtn"], tmp_path / "out", tokens, "modicum")
    packed = [module for module in loaded.modules() if isinstance(module, WeightForm)]
    assert len(packed) == 3 * 7
    assert [n for n, m in loaded.named_modules() if isinstance(m, nn.Linear)] == ["lm_head"]
