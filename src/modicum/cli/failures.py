"""How a command ends when something is wrong: one message, an exit code, no traceback.

Exit codes: 2 for what the user can mend (arguments, recipe, files), 3 for what the machine lacks or a promise that
broke, 130 for Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from modicum.errors import Interrupted, ModicumError


def explain(app: Callable[..., Any], arguments: Sequence[str]) -> int:
    """Run `app`; print what went wrong, if anything did; return the exit code."""
    as_json = "--json" in arguments
    try:
        result = app(args=list(arguments), prog_name="modicum", standalone_mode=False)
    except ModicumError as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        return _report(
            Interrupted("Interrupted.", "The same command goes on where this one stopped."), as_json
        )
    except click.exceptions.Abort:
        return _report(
            Interrupted("Interrupted.", "The same command goes on where this one stopped."), as_json
        )
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except BrokenPipeError:
        return 0
    return result if isinstance(result, int) else 0


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
