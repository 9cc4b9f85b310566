from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from modicum.evaluate import environment
from modicum.evaluate.environment import processor
from modicum.version import __version__


def test_states_versions_and_machine_and_survives_json() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["modicum"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["device"] == "cpu"


def test_names_the_processor_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example 9000: turbo\nflags\t: x\n")
    assert processor(tmp_path / "cpuinfo") == "Example 9000: turbo"
    assert processor(tmp_path / "missing") != ""
