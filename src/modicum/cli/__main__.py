"""`python -m modicum.cli`."""

from modicum.cli import main

main()
