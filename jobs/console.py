"""Where tables are printed: the terminal, or plain and wide where there is none."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 150


def stdout_console() -> Console:
    """Return a console on standard output that takes text as it is: names from manifests are no markup."""
    width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(width=width, markup=False, highlight=False, soft_wrap=False)
