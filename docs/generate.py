"""Bring the numbers and outputs that README and pages show up to date, by running what they show.

    python docs/generate.py            everything
    python docs/generate.py readme     README: the demo's result and the table of methods
    python docs/generate.py pages      pages: every command of a `console` block, every `python` block

`readme --report FILE` takes the demo's result from a report.json instead of running the demo. In a page every line
`$ command` of a ```console block is run again and its output put below it; a ```python block is run, and a ```text
block that follows it becomes what it printed. (Sketches that nobody should run are ```py and ```sh blocks.)
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "docs/index.md",
    "docs/getting-started.md",
    "docs/recipes.md",
    "docs/lossless.md",
    "docs/images.md",
    "docs/pixelgen.md",
    "docs/runs.md",
    "docs/errors.md",
)
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
WIDTH = "84"


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("readme", "pages", "all"), default="all")
    parser.add_argument("--report", type=Path, help="a report.json of the demo")
    parser.add_argument("--page", action="append", help="only this page; repeatable")
    options = parser.parse_args()
    if options.what != "pages":
        readme(options.report)
    if options.what != "readme":
        for page in options.page or PAGES:
            rerun(ROOT / page)


def readme(report: Path | None) -> None:
    """Fill in the README's tables."""
    from reference import method_table

    with tempfile.TemporaryDirectory() as folder:
        if report is None:
            print("modicum demo", flush=True)
            shell("modicum demo --out modicum-demo", Path(folder))
            report = Path(folder) / "modicum-demo/report/report.json"
        file = ROOT / "README.md"
        text = file.read_text()
        text = fill(text, "demo", demo_table(report))
        text = fill(text, "methods", method_table("src/modicum/{path}.py"))
        file.write_text(text)


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between `<!-- name -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def demo_table(report: Path) -> str:
    """Before and after of a report.json, as Markdown."""
    from modicum.evaluate import Comparison
    from modicum.report import headline
    from modicum.report.rows import comparison_rows

    comparison = Comparison.load(report)
    lines = ["| nano-lm, on held-out text | before | after | change |", "| --- | ---: | ---: | ---: |"]
    for row in comparison_rows(comparison):
        spread = f" ({row.change.spread})" if row.change.spread else ""
        label = f"{row.label}, {row.unit}" if row.unit else row.label
        lines.append(f"| {label} | {row.before.text} | {row.after.text} | {row.change.text}{spread} |")
    return f"**{headline(comparison)}.**\n\n" + "\n".join(lines)


def rerun(page: Path) -> None:
    """Run what a page shows, in a fresh directory, and put in what comes out."""
    if not page.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "recipes").symlink_to(ROOT / "recipes")

        def updated(match: re.Match[str]) -> str:
            kind, body = match[1], match[2]
            if kind == "console":
                commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
                shown = "\n".join(f"$ {command}\n{shell(command, work)}" for command in commands)
                return f"```console\n{shown.rstrip()}\n```\n"
            (work / "snippet.py").write_text(body)
            printed = shell("python snippet.py", work)
            return f"```python\n{body}```\n" + (f"\n```text\n{printed}```\n" if match[3] is not None else "")

        print(page.relative_to(ROOT), flush=True)
        page.write_text(BLOCK.sub(updated, page.read_text()))


def shell(command: str, work: Path) -> str:
    """What a command prints, without the paths of this machine.

    Commands that are shown because they fail end in an `Error` line; any other failure ends this script.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": WIDTH,
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        command, shell=True, cwd=work, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if "Traceback" in done.stdout or (done.returncode and "Error" not in done.stdout):
        sys.exit(f"{command}\n{done.stdout}")
    text = done.stdout.replace(f"{ROOT}/", "").replace(f"{work}/", "")
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())


if __name__ == "__main__":
    main()
