from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modicum import zoo
from modicum.data import load_text, token_stream
from modicum.errors import OutputExists, UnknownName
from modicum.zoo import nano_lm
from modicum.zoo.lm_card import digest, heldout_loss
from modicum.zoo.loop import Budget, Loop
from modicum.zoo.nano_lm import NanoLm

TINY = NanoLm(
    vocab=300, hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64, context=32, short=16, texts=3
)


@pytest.fixture(scope="module")
def shipped() -> Path:
    return zoo.path("nano-lm")


@pytest.fixture
def small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard library of three packages, so that a training starts at once."""
    paths = sysconfig.get_paths()
    for name in ("json", "asyncio", "logging"):
        shutil.copytree(Path(paths["stdlib"], name), tmp_path / "lib" / name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {**paths, "stdlib": str(tmp_path / "lib")})


def quiet(line: str) -> None:
    """Takes no notice of progress."""


def test_names_and_unknown_name() -> None:
    assert "nano-lm" in zoo.names()
    with pytest.raises(UnknownName, match="nano-ml") as caught:
        zoo.path("nano-ml")
    assert "nano-lm" in caught.value.hint


def test_shipped_directory_is_small_and_complete(shipped: Path) -> None:
    files = {file.name: file.stat().st_size for file in shipped.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 10_000_000


def test_shipped_tokenizer_round_trips(shipped: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    text = 'def read_(self):\n    """Größe 读."""\n\n\n\treturn  {1: 2.5}\r\n'
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text)
    assert tokenizer.eos_token_id == 0


def test_shipped_model_keeps_what_its_card_says(shipped: Path) -> None:
    metrics = json.loads((shipped / "metrics.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    assert model.num_parameters() == metrics["parameters"] == 4_656_384
    sample = token_stream(load_text(None, "heldout"), tokenizer, metrics["sample_tokens"])
    same_text = digest(sample) == metrics["sample_digest"]
    loss = heldout_loss(model, sample)
    assert loss == pytest.approx(metrics["sample_loss"], abs=0.02 if same_text else 0.4)
    if same_text:
        assert loss < metrics["ngram_sample_loss"] - 0.1


def test_shipped_model_beats_five_grams_on_all_held_out_text(shipped: Path) -> None:
    metrics = json.loads((shipped / "metrics.json").read_text())
    assert metrics["heldout_loss"] < metrics["ngram_heldout_loss"] - 0.1
    card = (shipped / "README.md").read_text()
    assert f"{metrics['heldout_loss']:.4f}" in card
    assert metrics["command"] in card


@pytest.mark.usefixtures("small_library")
def test_interrupted_training_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano_lm.train(tmp_path / "whole", tmp_path / "w", Budget(steps=3), report=quiet, sizes=TINY)

    step = Loop._train_step

    def killed(self: Loop, progress: float) -> float:
        if self.step == 2:
            self.save()
            raise KeyboardInterrupt
        return step(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            nano_lm.train(tmp_path / "parts", tmp_path / "p", Budget(steps=3), report=quiet, sizes=TINY)
    assert not (tmp_path / "parts").exists()
    nano_lm.train(tmp_path / "parts", tmp_path / "p", Budget(steps=3), report=quiet, sizes=TINY)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.usefixtures("small_library")
def test_trained_directory_opens_in_transformers(tmp_path: Path) -> None:
    nano_lm.train(tmp_path / "out", tmp_path / "w", Budget(steps=2), report=quiet, sizes=TINY)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.num_key_value_heads == 1
    assert tokenizer.vocab_size == model.config.vocab_size == 300
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert metrics["tokens_trained"] == 2 * TINY.batch * TINY.context
    assert metrics["train_documents"] == metrics["heldout_documents"] == 3


def test_existing_output_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputExists, match="out"):
        nano_lm.train(tmp_path / "out", tmp_path / "w", Budget(steps=1), report=quiet, sizes=TINY)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_batches_visit_every_window_once_per_epoch() -> None:
    stream = torch.arange(32 * 9 + 1)  # eight windows, and room for the shift
    steps = 8 // TINY.batch
    seen = torch.cat([nano_lm._batch(stream, TINY, seed=0, step=step)[:, :-1] for step in range(steps)])
    assert seen.unique().numel() == seen.numel() == 8 * 32
    assert not torch.equal(seen[:4], nano_lm._batch(stream, TINY, seed=0, step=steps)[:, :-1])
    assert not torch.equal(seen[:4], nano_lm._batch(stream, TINY, seed=1, step=0)[:, :-1])
