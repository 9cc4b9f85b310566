"""Running commands in this process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modicum.cli.app import app
from modicum.cli.failures import explain


class Terminal:
    """Runs commands in this process and gives what they printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> str:
        self.capfd.readouterr()
        assert explain(app, [str(a) for a in arguments]) == 0
        captured = self.capfd.readouterr()
        assert captured.err == ""
        return captured.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capfd)
