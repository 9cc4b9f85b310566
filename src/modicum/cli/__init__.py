"""The command line. Nothing heavy is imported before a command runs, so `modicum --help` is immediate."""

from __future__ import annotations

import sys

from modicum.cli.app import app
from modicum.cli.failures import explain


def main() -> None:
    """Entry point: run a command; turn errors into one message and an exit code."""
    sys.exit(explain(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
