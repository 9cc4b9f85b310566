"""Hooks of mkdocs: pages and tables that come from the code are made while the site is built."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files
from reference import FRAGMENTS, command_page, method_page, methods_index, registry

INSERT = re.compile(r"^<!-- insert: (\w+) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Give every method its place in the navigation."""
    pages = [{name: f"methods/{name}.md"} for name in registry()]
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = [{"All methods": "methods/index.md"}, *pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    texts = {f"methods/{name}.md": method_page(name) for name in registry()}
    texts |= {"methods/index.md": methods_index(), "cli.md": command_page()}
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **unused: Any) -> str:
    """Fill in the tables that a page asks for."""
    return INSERT.sub(lambda match: FRAGMENTS[match[1]](), markdown)
