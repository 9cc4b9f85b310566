"""Whatever a user gets wrong ends in one clear message, exit code 2, and no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.formats.shards import SINGLE, write_json

GPTQ, WANDA = ["-m", "quantize.gptq"], ["-m", "prune.wanda"]
MAGNITUDE = ["-m", "prune.magnitude"]


class Case:
    """One sad path: what is damaged first, the arguments behind `modicum`, and what the message must name."""

    def __init__(self, arguments: list[str], *named: str, damage: Any = None) -> None:
        self.arguments, self.named, self.damage = arguments, named, damage


def compress(*more: str) -> list[str]:
    return ["compress", "MODEL", "--out", "OUT", *more]


def shard(folder: Path) -> None:
    """Turn the model into two shards of which one is missing."""
    weights = dict.fromkeys(load_file(folder / SINGLE), "model-00001-of-00002.safetensors")
    weights["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": weights})


def truncate(folder: Path) -> None:
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[: len(content) // 2])


def disagree(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "intermediate_size": 128})


def poison(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def without(*names: str) -> Any:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def occupy(folder: Path) -> None:
    folder.with_name("out").mkdir()


def text(content: str) -> Any:
    def write(folder: Path) -> None:
        folder.with_name("text.txt").write_text(content)

    return write


def recipe(content: str) -> Any:
    def write(folder: Path) -> None:
        folder.with_name("recipe.yaml").write_text(content)

    return write


def garble(name: str) -> Any:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(b"\x00{]garbled\xff")

    return write


RECIPE = ["--recipe", "RECIPE"]
CASES = {
    "misspelt method": Case(compress("-m", "prune.wand"), "'prune.wand'", "Did you mean 'prune.wanda'?"),
    "unknown family": Case(compress("-m", "zzz"), "'zzz'", "Known:"),
    "misspelt setting": Case(compress(*WANDA, "-s", "sparsty=0.5"), "'sparsty'", "Did you mean 'sparsity'?"),
    "setting of another method": Case(compress(*WANDA, "-s", "prune.wanda.bits=4"), "'bits'"),
    "no value": Case(compress(*WANDA, "-s", "sparsity"), "KEY=VALUE"),
    "a value that is none": Case(compress(*WANDA, "-s", "only=[q"), "only=[q"),
    "value out of range": Case(compress(*WANDA, "-s", "sparsity=1.5"), "sparsity", "1.5", "modicum show"),
    "value of another type": Case(compress(*GPTQ, "-s", "bits=four"), "bits", "four"),
    "pattern that is none": Case(compress(*WANDA, "-s", "pattern=4:2"), "pattern", "2:4"),
    "quantize then prune": Case(compress(*GPTQ, *WANDA), "prune.wanda", "quantize.gptq", "This order works"),
    "nothing to do": Case(compress(), "--recipe", "--method"),
    "both to do": Case(compress(*WANDA, *RECIPE), "--recipe", "--method", damage=recipe("[prune.wanda]")),
    "recipe that is missing": Case(compress(*RECIPE), "recipe.yaml"),
    "recipe that is no YAML": Case(compress(*RECIPE), "recipe.yaml", "YAML", damage=recipe("steps: [")),
    "recipe without steps": Case(compress(*RECIPE), "recipe.yaml", "no steps", damage=recipe("seed: 3")),
    "misspelt recipe key": Case(compress(*RECIPE), "'step'", "'steps'", damage=recipe("step: [prune.wanda]")),
    "misspelt step": Case(compress(*RECIPE), "prune.wanda", damage=recipe("[prune.wandaa]")),
    "settings for a recipe": Case(
        compress(*RECIPE, "-s", "sparsity=0.1"), "--set", damage=recipe("[prune.wanda]")
    ),
    "no such model": Case(["compress", "nano-lmm", "--out", "OUT", *WANDA], "nano-lmm", "nano-lm"),
    "no such directory": Case(["compress", "MODEL/none", "--out", "OUT", *WANDA], "not a model directory"),
    "missing shard": Case(compress(*WANDA), "model-00002-of-00002.safetensors is missing", damage=shard),
    "truncated weights": Case(compress(*WANDA), SINGLE, "truncated", damage=truncate),
    "garbled weights": Case(compress(*WANDA), SINGLE, damage=garble(SINGLE)),
    "no weights": Case(compress(*WANDA), "safetensors", damage=without(SINGLE)),
    "no config": Case(compress(*WANDA), "config.json is missing", damage=without("config.json")),
    "garbled config": Case(compress(*WANDA), "config.json", damage=garble("config.json")),
    "config that disagrees": Case(compress(*WANDA), "config says", "[128, 64]", "[96, 64]", damage=disagree),
    "NaN in the weights": Case(
        compress(*MAGNITUDE), "layers.0.self_attn.q_proj.weight", "NaN", damage=poison
    ),
    "pickle": Case(compress(*WANDA), "pickle", "pytorch_model.bin", "save_file", damage=pickle),
    "output exists": Case(compress(*MAGNITUDE), "out exists", "--overwrite", damage=occupy),
    "no tokenizer": Case(
        compress(*WANDA), "no tokenizer", damage=without("tokenizer.json", "tokenizer_config.json")
    ),
    "garbled tokenizer": Case(compress(*WANDA), "no tokenizer", damage=garble("tokenizer.json")),
    "empty text": Case(compress(*WANDA, "--calibration", "TEXT"), "text.txt", damage=text("")),
    "short text": Case(
        compress(*WANDA, "--calibration", "TEXT"), "fewer than one window", damage=text("short")
    ),
    "no text": Case(compress(*WANDA, "--calibration", "TEXT"), "text.txt"),
    "tokens that are too few": Case(
        compress(*WANDA, "--calibration", "TOKENS", "--samples", "99"), "99 windows"
    ),
    "weights as tokens": Case(compress(*WANDA, "--calibration", "MODEL/model.safetensors"), "windows"),
    "a GPU that is not there": Case(compress(*WANDA, "--device", "cuda:5"), "cuda:5", "--device cpu"),
    "a device that is none": Case(compress(*WANDA, "--device", "gpu"), "'gpu'"),
    "unknown format": Case(compress(*WANDA, "--format", "gguf"), "'gguf'", "compressed-tensors"),
    "format that cannot hold it": Case(compress(*WANDA, "--format", "compressed-tensors"), "integer weights"),
    "unknown dtype": Case(compress(*WANDA, "--dtype", "int8"), "'int8'", "bfloat16"),
    "no samples": Case(compress(*WANDA, "--samples", "0"), "--samples"),
    "unknown option": Case(compress(*WANDA, "--sparsity", "0.5"), "--sparsity"),
    "unknown command": Case(["compres"], "compres", "compress"),
    "missing argument": Case(["compress", "--out", "OUT"], "model", "--help"),
    "nothing is touched": Case(compress(*WANDA, "-s", "only=[nothing]"), "touches no layer"),
    "plan of a misspelt method": Case(["plan", "MODEL", "-m", "prune.wnda"], "'prune.wnda'", "prune.wanda"),
    "plan of a damaged model": Case(["plan", "MODEL", *WANDA], SINGLE, damage=truncate),
    "show nothing": Case(["show", "prune.wandaa"], "'prune.wandaa'", "prune.wanda"),
    "evaluate nothing": Case(["evaluate", "MODEL/none", "--against", "MODEL"], "not a model directory"),
    "evaluate with no text": Case(["evaluate", "MODEL", "--against", "MODEL", "--text", "TEXT"], "text.txt"),
    "evaluate what is unknown": Case(
        ["evaluate", "MODEL", "--against", "MODEL", "--only", "beauty"], "beauty"
    ),
    "generate from damage": Case(["generate", "MODEL", "hello"], SINGLE, damage=truncate),
    "generate without a tokenizer": Case(
        ["generate", "MODEL", "hello"],
        "no tokenizer",
        damage=without("tokenizer.json", "tokenizer_config.json"),
    ),
    "export nothing": Case(["export", "MODEL", "--out", "OUT"], "--uniform"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_explained_in_one_message(
    name: str,
    tiny_llama: Path,
    token_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, model = CASES[name], tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    if case.damage:
        case.damage(model)
    before = sorted(path.name for path in tmp_path.iterdir())
    places = {
        "MODEL": str(model),
        "OUT": str(tmp_path / "out"),
        "TEXT": str(tmp_path / "text.txt"),
        "RECIPE": str(tmp_path / "recipe.yaml"),
        "TOKENS": str(token_file),
    }
    line = [_placed(argument, places) for argument in case.arguments]
    monkeypatch.setenv("COLUMNS", "500")
    assert explain(app, line) == 2
    captured = capsys.readouterr()
    assert captured.err.count("Error  ") == 1
    assert "Traceback" not in captured.err + captured.out
    for part in case.named:
        assert part in captured.err
    assert not {"out"} & {path.name for path in tmp_path.iterdir()} - set(before)

    assert explain(app, [*line, "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found.keys() == {"error", "what", "hint"}
    assert all(part in found["what"] + found["hint"] for part in case.named)
    assert captured.err == ""


def _placed(argument: str, places: dict[str, str]) -> str:
    head, slash, tail = argument.partition("/")
    return places.get(head, head) + slash + tail


def test_a_real_process_ends_the_same_way(tmp_path: Path, toolbox: Any) -> None:
    done = toolbox.command("compress", "nano-lm", "-m", "prune.wand", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error  ")
    assert "prune.wanda" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_of_a_command_that_cannot_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**given: Any) -> None:
        raise KeyboardInterrupt

    assert explain(interrupted, ["report", "x"]) == 130
    assert "goes on" not in capsys.readouterr().err
    assert explain(interrupted, ["compress", "x"]) == 130
    assert "goes on" in capsys.readouterr().err


def test_a_defect_of_ours_is_not_hidden() -> None:
    def defect(**given: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        explain(defect, ["compress"])
