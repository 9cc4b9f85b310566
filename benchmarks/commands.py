"""The commands that a comparison runs: one case is one method with equal settings for both tools.

Everything that touches modicum's command line is in `modicum_command`. Imports nothing heavy (see
processes.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PEER_SCRIPT = HERE / "peers" / "llmcompressor_once.py"

# What both processes import before either has a model: the floor from which memory is counted.
BARE_IMPORTS = (
    "import torch, transformers, safetensors, compressed_tensors; transformers.AutoModelForCausalLM"
)


@dataclass(frozen=True)
class Case:
    """One method with its settings, as each tool is told them.

    Attributes:
        method: of modicum.
        settings: of it.
        peer_method: of llm-compressor.
        peer_settings: of it.
        quantizes: a group size is added.
        dense_inputs: every block is calibrated on what the dense model computes.
    """

    method: str
    settings: dict[str, object]
    peer_method: str
    peer_settings: dict[str, object]
    quantizes: bool = False
    dense_inputs: bool = False


CASES = {
    "magnitude": Case("prune.magnitude", {"sparsity": 0.5}, "magnitude", {"sparsity": 0.5}),
    "wanda": Case("prune.wanda", {"sparsity": 0.5}, "wanda", {"sparsity": 0.5}),
    "wanda, dense inputs": Case(
        "prune.wanda", {"sparsity": 0.5}, "wanda", {"sparsity": 0.5}, dense_inputs=True
    ),
    "ace": Case("prune.ace", {"sparsity": 0.5}, "wanda", {"sparsity": 0.5}),
    "ace, dense inputs": Case("prune.ace", {"sparsity": 0.5}, "wanda", {"sparsity": 0.5}, dense_inputs=True),
    "wanda-2:4": Case("prune.wanda", {"pattern": "2:4"}, "wanda", {"pattern": "2:4"}),
    "sparsegpt": Case(
        "prune.sparsegpt",
        {"sparsity": 0.5, "block_size": 128, "damp": 0.01},
        "sparsegpt",
        {"sparsity": 0.5, "block-size": 128, "damping": 0.01},
    ),
    "sparsegpt-2:4": Case(
        "prune.sparsegpt",
        {"pattern": "2:4", "block_size": 128, "damp": 0.01},
        "sparsegpt",
        {"pattern": "2:4", "block-size": 128, "damping": 0.01},
    ),
    "gptq": Case(
        "quantize.gptq",
        {"bits": 4, "symmetric": True, "act_order": True, "block_size": 128, "damp": 0.01},
        "gptq",
        {"bits": 4, "block-size": 128, "damping": 0.01, "act-order": True},
        quantizes=True,
    ),
    "awq": Case(
        "quantize.awq",
        {"bits": 4, "symmetric": True, "ratios": 20, "duo_scaling": True, "clip": False},
        "awq",
        {"bits": 4, "n-grid": 20},
        quantizes=True,
    ),
}


def group_size(checkpoint: Path) -> int:
    """The largest of 128, 64 and 32 that divides the inputs of every linear layer."""
    config = json.loads((checkpoint / "config.json").read_text())
    widths = (config["hidden_size"], config["intermediate_size"])
    return next(size for size in (128, 64, 32) if all(width % size == 0 for width in widths))


def tokens_shape(tokens: Path) -> tuple[int, int]:
    """Windows and length of a token file, read from the header of its safetensors."""
    with tokens.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    windows, length = header["tokens"]["shape"]
    return windows, length


def modicum_command(case: Case, checkpoint: Path, tokens: Path, out: Path) -> list[str]:
    """Compress a checkpoint with modicum."""
    settings = dict(case.settings)
    if case.quantizes:
        settings["group_size"] = group_size(checkpoint)
    command = [str(PYTHON), "-m", "modicum.cli", "compress", str(checkpoint), "--method", case.method]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(value) if isinstance(value, bool) else value}"]
    windows, length = tokens_shape(tokens)
    command += ["--calibration", str(tokens), "--samples", str(windows), "--length", str(length)]
    command += ["--dense-inputs"] * case.dense_inputs
    return [*command, "--out", str(out), "--json"]


def peer_command(case: Case, checkpoint: Path, tokens: Path, out: Path) -> list[str]:
    """Compress a checkpoint with llm-compressor."""
    settings = dict(case.peer_settings)
    if case.quantizes:
        settings["group-size"] = group_size(checkpoint)
    command = [str(PEER_PYTHON), str(PEER_SCRIPT), case.peer_method, str(checkpoint), str(tokens), str(out)]
    for name, value in settings.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return [*command, *["--dense-inputs"] * case.dense_inputs]


def bare_command(python: Path) -> list[str]:
    """Import what both tools import, and nothing else."""
    return [str(python), "-c", BARE_IMPORTS]


def versions_command(python: Path, packages: tuple[str, ...]) -> list[str]:
    """Print the versions of installed packages as one line of JSON."""
    code = "import json, sys; from importlib.metadata import version; "
    code += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    return [str(python), "-c", code, *packages]


def tokens_command(
    kind: str, tokenizer: Path, out: Path, windows: int, length: int, source: str
) -> list[str]:
    """Write one file of tokens."""
    command = [str(PYTHON), str(HERE / "tokens.py"), kind, "--tokenizer", str(tokenizer), "--out", str(out)]
    return [*command, "--windows", str(windows), "--length", str(length), "--source", source]


def perplexity_command(checkpoint: Path, tokens: Path) -> list[str]:
    """Score one checkpoint."""
    return [str(PYTHON), str(HERE / "held_out.py"), str(checkpoint), str(tokens)]
