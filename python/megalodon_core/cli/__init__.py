"""The command `megalodon-core`. Importing it loads no torch; a subcommand loads what it needs."""

from megalodon_core.cli.arguments import main

__all__ = ["main"]
