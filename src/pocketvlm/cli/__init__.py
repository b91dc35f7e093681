"""The command line."""

from pocketvlm.cli.door import main
from pocketvlm.cli.parser import build_parser

__all__ = ["build_parser", "main"]
