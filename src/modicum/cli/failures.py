"""How a command ends when something is wrong: one message, an exit code, no traceback.

Exit codes: 2 for what the user can mend (arguments, recipe, files), 3 for what the machine lacks or a promise that
broke, 130 for Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from modicum.errors import Interrupted, InvalidSetting, ModicumError

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for arguments that it cannot read; it has no public name."""

RESUMABLE = ("compress", "demo", "recover", "search")


def explain(app: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run `app`; print what went wrong, if anything did; return the exit code."""
    as_json = "--json" in arguments
    stopped = _interrupted(arguments)
    try:
        result = app(args=list(arguments), prog_name="modicum", standalone_mode=False)
    except ModicumError as error:
        return _report(error, as_json)
    except UsageError as error:
        # Without a message the help has been shown instead.
        return _report(_usage(error), as_json) if error.format_message() else InvalidSetting.exit_code
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _report(stopped, as_json)
    if result == stopped.exit_code:  # how typer passes Ctrl-C on
        return _report(stopped, as_json)
    return result if isinstance(result, int) else 0


def _interrupted(arguments: Sequence[str]) -> Interrupted:
    resumable = bool(arguments) and arguments[0] in RESUMABLE
    return Interrupted(
        "Interrupted.", "The same command goes on where this one stopped." if resumable else ""
    )


def _usage(error: Any) -> InvalidSetting:
    command = error.ctx.command_path if error.ctx is not None else "modicum"
    return InvalidSetting(error.format_message(), f"See `{command} --help`.")


def _report(error: ModicumError, as_json: bool) -> int:
    if as_json:
        found = {"error": type(error).__name__, "what": error.what, "hint": error.hint}
        print(json.dumps(found))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
        console.print(Text.assemble(("Error  ", "bold red"), error.what))
        if error.hint:
            console.print(Text.assemble(("       ", ""), (error.hint, "dim")))
    return error.exit_code
