"""The quantizer is registered exactly once, whoever is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import modicum

COUNTED = """
import sys
registered = []
import transformers.quantizers.auto as auto
table = auto.AUTO_QUANTIZER_MAPPING
assert table["modicum"].__name__ == "ModicumQuantizer", table
assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["modicum"].__name__ == "ModicumConfig"
assert list(table).count("modicum") == 1
from modicum.hook import _Watcher
assert not any(isinstance(finder, _Watcher) for finder in sys.meta_path)
modules = [name for name in sys.modules if name.endswith("formats.native")]
assert modules == ["modicum.formats.native"], modules
import inspect
assert "AUTO_QUANTIZER_MAPPING" in inspect.getsource(auto)
"""


@pytest.mark.parametrize(
    "first",
    [
        "import modicum, transformers",
        "import transformers.quantizers.auto; import modicum",
        "import modicum; import modicum.hook; modicum.hook.install(); import modicum.formats.native",
    ],
    ids=["modicum first", "transformers first", "all ways at once"],
)
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{COUNTED}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_transformers_nothing_is_imported() -> None:
    script = """
import sys, modicum
from modicum.hook import _Watcher
modicum.hook.install()
assert sum(isinstance(finder, _Watcher) for finder in sys.meta_path) == 1
assert "transformers" not in sys.modules
import json.tool
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_modicum_transformers_refuses_instead_of_opening_random_weights(
    tiny_llama: Path, tmp_path: Path
) -> None:
    modicum.compress(tiny_llama, "prune.magnitude", out=tmp_path / "out", form="modicum")
    code = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        f"try: AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
        "except ValueError as error: print(error)\n"
        "assert 'modicum' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "import modicum first" in told
