"""`modicum methods`, `modicum show` and `modicum doctor`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from modicum.cli import options


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("methods", epilog="modicum methods")(methods)
    app.command("show", epilog="modicum show prune.wanda")(show)
    app.command("doctor", epilog="modicum doctor")(doctor)


def methods(quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """List every method, with its idea and its paper."""
    from rich.table import Table

    from modicum.cli.console import console, print_json
    from modicum.method import registry

    found = registry()
    if as_json:
        print_json([_described(method) for method in found.values()])
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("method", "idea", "paper"):
        table.add_column(heading, no_wrap=heading == "method")
    for name, method in found.items():
        table.add_row(f"[bold]{name}[/]", method.summary(), f"[dim]{method.paper.venue}[/]")
    console(quiet, as_json).print(table)


def show(
    method: Annotated[str, typer.Argument(help="A method's name, such as prune.wanda.")],
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Describe one method: idea, formula, settings with defaults, paper, what it keeps."""
    from rich.table import Table
    from rich.text import Text

    from modicum.cli.console import console, print_json
    from modicum.method import find

    found = find(method)
    if as_json:
        print_json(_described(found))
    screen = console(quiet, as_json)
    screen.print(Text.assemble((found.name, "bold"), f"  {found.paper.title} ({found.paper.venue})"))
    if found.paper.url:
        screen.print(Text(found.paper.url, style="dim"))
    screen.print()
    screen.print(Text(inspect.getdoc(found) or ""))
    screen.print()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("setting", "default", "meaning"):
        table.add_column(heading, no_wrap=heading != "meaning")
    for setting in _described(found)["settings"]:
        table.add_row(f"[bold]{setting['name']}[/]", str(setting["default"]), Text(setting["meaning"]))
    screen.print(table)
    screen.print()
    screen.print(Text.assemble(*_last_line(found)))


def _described(method: Any) -> dict[str, Any]:
    settings = [
        {"name": key, "default": field.get_default(), "meaning": field.description or ""}
        for key, field in method.model_fields.items()
    ]
    return {
        "name": method.name,
        "summary": method.summary(),
        "paper": {"title": method.paper.title, "venue": method.paper.venue, "url": method.paper.url},
        "settings": settings,
        "keeps": [kind.__name__ for kind in method.keeps],
    }


def _last_line(method: Any) -> tuple[tuple[str, str], str]:
    """What a method keeps of earlier steps, or how a method that changes no weights is used."""
    from modicum.method import RuntimeMethod

    if issubclass(method, RuntimeMethod):
        family, _, short = method.name.partition(".")
        if family == "diffusion":
            drawn = f"modicum generate nano-dit --label 3 --step-cache {short} --out images.png"
        else:
            drawn = f"modicum generate nano-var --label 3 --kv {short} --out images.png"
        return ("use  ", "dim"), drawn
    keeps = ", ".join(_words(kind.__name__) for kind in method.keeps)
    return ("keeps  ", "dim"), keeps or "nothing that earlier steps promised"


def _words(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def doctor(quiet: options.Quiet = False, as_json: options.Json = False) -> None:
    """Say what is installed, which accelerators there are, and which extras are missing."""
    from rich.table import Table
    from rich.text import Text

    from modicum.cli.console import console, print_json
    from modicum.cli.health import checkup

    facts = checkup()
    if as_json:
        print_json({name: fact.value for name, fact in facts.items()})
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    marks = {True: "[green]✓[/]", False: "[yellow]–[/]"}
    for name, fact in facts.items():
        table.add_row(marks[fact.good], name, Text(fact.value), Text(fact.remedy, style="dim"))
    console(quiet, as_json).print(table)
