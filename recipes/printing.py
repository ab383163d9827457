"""Tables, JSON documents and errors as the command line prints them."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recipes.problems import RecipeProblems
from trainer.errors import BraidError


def print_json(document: Any) -> None:
    """One document on standard output."""
    print(json.dumps(document, indent=2))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and texts in two columns; long texts are folded."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    Console(highlight=False).print(table)


def print_error(error: BraidError) -> None:
    """What went wrong, on standard error, without a traceback."""
    console = Console(stderr=True, highlight=False)
    title = f"{type(error).__name__}, exit code {int(error.exit_code)}"
    if console.is_terminal:
        console.print(Panel(Text(str(error)), title=title, border_style="red"))
    else:
        # A frame would break paths and messages that people search logs for.
        print(f"{title}\n{error}", file=sys.stderr)


def error_record(error: BraidError) -> dict[str, Any]:
    """The error for scripts."""
    record: dict[str, Any] = {"error": str(error), "exit_code": int(error.exit_code)}
    if isinstance(error, RecipeProblems):
        record["problems"] = [
            {"origin": str(p.origin), "key": p.key, "message": p.message} for p in error.problems
        ]
    return record
