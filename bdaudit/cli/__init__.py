"""The command line."""

from bdaudit.cli.app import app, main

__all__ = ["app", "main"]
