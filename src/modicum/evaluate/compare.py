"""Measuring two models side by side: each metric once per model, on the same inputs, into one Comparison."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnknownName
from modicum.evaluate.agreement import Agreement, agreement
from modicum.evaluate.coding import CodingRecord
from modicum.evaluate.comparison import Comparison, LayerRecord, Measurements, Sample
from modicum.evaluate.environment import environment
from modicum.evaluate.generation import continue_text
from modicum.evaluate.inference import device_of, evaluating
from modicum.evaluate.memory import peak_memory
from modicum.evaluate.perplexity import perplexity
from modicum.evaluate.protocol import Protocol
from modicum.evaluate.size import disk_size, memory_size
from modicum.evaluate.speed import Spread, paired_speed, timed_generation

EVERYTHING = frozenset({"quality", "size", "memory", "speed", "samples"})
PROMPTS, PROMPT_TOKENS = 3, 16  # taken from the evaluation text when no prompts are given
PEAK_RUNS = 3  # the median of them counts; allocators are a little moody

StageProgress = Callable[[str, int, int], None]  # (what is being measured, done, in all)


def compare(
    before: nn.Module,
    after: nn.Module,
    tokenizer: Any,
    tokens: Tensor,
    *,
    what: Collection[str] = EVERYTHING,
    before_dir: str | Path | None = None,
    after_dir: str | Path | None = None,
    protocol: Protocol | None = None,
    prompts: Sequence[str] = (),
    layers: Sequence[LayerRecord | Mapping[str, Any]] = (),
    coding: CodingRecord | None = None,
    recipe: dict[str, Any] | None = None,
    command: str | None = None,
    name: str = "model",
    data: str = "",
    seed: int = 0,
    progress: StageProgress | None = None,
) -> Comparison:
    """Measures two loaded models on the same inputs.

    Args:
        before: the original causal language model.
        after: the compressed one.
        tokenizer: of both; only samples need it.
        tokens: Tensor [n], the evaluation text.
        what: any of "quality" (perplexity, agreement), "size" (disk, memory), "memory" (peak), "speed",
            "samples".
        before_dir: checkpoint of the original; without it its size on disk is not measured.
        after_dir: checkpoint of the compressed model.
        protocol: settings of the measurement; None for the defaults, cut down to the model's context.
        prompts: texts to continue; none to take three places of the evaluation text.
        layers: what became of each layer (`LayerRecord` or its fields).
        coding, recipe, command, name, data, seed: carried into the result unchanged.
        progress: called with the stage, the steps done and the steps in all.

    Raises:
        UnknownName: `what` holds something else.
        InvalidSetting: samples without a tokenizer, or a protocol that exceeds the model's context.
        UnusableData: the text is too short.
    """
    for each in set(what) - EVERYTHING:
        raise UnknownName.among("measurement", each, EVERYTHING)
    if "samples" in what and tokenizer is None:
        raise InvalidSetting(
            "Samples need a tokenizer and none was given.", "Give one, or leave samples out."
        )
    protocol = protocol or Protocol.fitting(before, len(tokens))
    models = {"before": before, "after": after}
    directories = {"before": before_dir, "after": after_dir}
    measured: dict[str, dict[str, Any]] = {side: {} for side in models}
    facts: dict[str, Any] = {"environment": environment(device_of(after))}
    if "quality" in what:
        facts["agreement"] = _quality(models, tokens, protocol, measured, progress)
    if "memory" in what:
        facts["environment"]["peak_memory_by"] = _peak(models, tokens, protocol, measured)
    if "speed" in what:
        facts |= _speed(models, tokens, protocol, measured)
    if "samples" in what:
        texts = prompts or _prompts(tokenizer, tokens)
        facts["samples"] = _samples(before, after, tokenizer, texts, protocol.sample_tokens, progress)
    if "size" in what:  # last: a weight form may keep a second layout for a kernel once it has run
        _size(models, directories, measured)
    return Comparison(
        name=name,
        before=Measurements(**measured["before"]),
        after=Measurements(**measured["after"]),
        layers=tuple(LayerRecord.model_validate(layer) for layer in layers),
        coding=coding,
        recipe=recipe,
        command=command,
        protocol=protocol,
        seed=seed,
        data=data,
        tokens=len(tokens),
        **facts,
    )


def _quality(
    models: dict[str, nn.Module],
    tokens: Tensor,
    protocol: Protocol,
    measured: dict[str, dict[str, Any]],
    progress: StageProgress | None,
) -> Agreement:
    for side, model in models.items():
        scored = perplexity(
            model,
            tokens,
            protocol.window,
            protocol.stride,
            protocol.batch,
            progress=_stage(progress, f"perplexity {side}"),
        )
        measured[side]["perplexity"] = scored.ppl
    return agreement(
        models["before"],
        models["after"],
        tokens,
        protocol.window,
        batch=protocol.batch,
        progress=_stage(progress, "agreement"),
    )


def _size(
    models: dict[str, nn.Module],
    directories: dict[str, str | Path | None],
    measured: dict[str, dict[str, Any]],
) -> None:
    for side, model in models.items():
        measured[side]["memory_bytes"] = memory_size(model)
        directory = directories[side]
        if directory is not None:
            measured[side]["disk_bytes"] = disk_size(directory).weights


def _peak(
    models: dict[str, nn.Module], tokens: Tensor, protocol: Protocol, measured: dict[str, dict[str, Any]]
) -> str:
    """Fills in the peak bytes of both models; returns how they were measured."""
    prompt = tokens[None, : protocol.prefill_tokens]
    method = ""
    for side, model in models.items():
        with evaluating(model):
            timed_generation(
                model, prompt, protocol.decode_tokens
            )  # what libraries allocate once does not count
            runs = [
                peak_memory(
                    partial(timed_generation, model, prompt, protocol.decode_tokens), device_of(model)
                )
                for _ in range(PEAK_RUNS)
            ]
        method, extra = runs[0].method, [run.bytes for run in runs if run.bytes is not None]
        measured[side]["peak_bytes"] = memory_size(model) + int(median(extra)) if extra else None
    return method


def _speed(
    models: dict[str, nn.Module], tokens: Tensor, protocol: Protocol, measured: dict[str, dict[str, Any]]
) -> dict[str, Spread]:
    speeds = paired_speed(models, tokens, protocol.prefill_tokens, protocol.decode_tokens, protocol.rounds)
    for side, speed in speeds.items():
        measured[side] |= {"prefill": speed.prefill, "decode": speed.decode}
    return {"prefill_ratio": speeds["after"].prefill_ratio, "decode_ratio": speeds["after"].decode_ratio}


def _samples(
    before: nn.Module,
    after: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    tokens: int,
    progress: StageProgress | None,
) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    for prompt in prompts:
        texts = [continue_text(model, tokenizer, prompt, tokens) for model in (before, after)]
        samples.append(Sample(prompt=prompt, before=texts[0], after=texts[1]))
        if progress:
            progress("samples", len(samples), len(prompts))
    return tuple(samples)


def _prompts(tokenizer: Any, tokens: Tensor) -> list[str]:
    starts = [place * len(tokens) // PROMPTS for place in range(PROMPTS)]
    texts = [
        tokenizer.decode(tokens[start : start + PROMPT_TOKENS].tolist(), skip_special_tokens=True)
        for start in starts
    ]
    return [text for text in texts if text.strip()]


def _stage(progress: StageProgress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)
