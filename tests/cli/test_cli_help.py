"""Every command explains itself with an example that works."""

from __future__ import annotations

import shlex

import pytest

from modicum.cli.app import app, commands
from modicum.cli.failures import explain

COMMANDS = commands()


def test_the_commands() -> None:
    assert {"demo", "compress", "plan", "evaluate", "report", "generate", "methods", "show", "doctor"} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(app, [*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"modicum {name}" in " ".join(shown.split())
    assert COMMANDS[name].help
    assert "--json" in shown
    assert "--quiet" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_a_command_line_that_can_be_read(name: str) -> None:
    example = shlex.split(COMMANDS[name].epilog)
    words = ["modicum", *name.split()]
    assert example[: len(words)] == words
    with COMMANDS[name].make_context(name, example[len(words) :]) as context:
        assert context.params


def test_version_and_bare_call(capsys: pytest.CaptureFixture[str]) -> None:
    import modicum

    assert explain(app, ["--version"]) == 0
    assert capsys.readouterr().out.split() == ["modicum", modicum.__version__]
    assert explain(app, []) == 2
    captured = capsys.readouterr()
    assert "compress" in captured.out + captured.err
    assert "Error" not in captured.err
