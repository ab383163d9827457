"""A run as people watch it: with a progress bar on a terminal, in plain lines anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from cluster.view import RunView
from recipes.paths import program_prefix, shown
from recipes.wording import duration, failure_lines, next_commands, step_line


@contextmanager
def open_view() -> Iterator[RunView]:
    """The view that fits standard output. The terminal is itself again afterwards."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield PlainView()
        return
    view = TerminalView(console)
    try:
        yield view
    finally:
        view.close()


class PlainView:
    """One line per event, for logs and pipes. Warnings and failures go to standard error."""

    def phase(self, name: str, detail: str) -> None:
        """Say which phase it is."""
        print(f"phase: {name}" + (f"  {detail}" if detail else ""), flush=True)

    def note(self, text: str) -> None:
        """Pass it on."""
        print(text, flush=True)

    def warning(self, text: str) -> None:
        """Pass it on, marked."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def step(self, record: dict[str, Any]) -> None:
        """The line that people search for."""
        print(step_line(record), flush=True)

    def finished(self, outcome: dict[str, Any]) -> None:
        """How it ended and what to do next."""
        print(_ending(outcome), flush=True)
        for line in next_commands(outcome, shown(outcome["run_dir"]), program_prefix()):
            print(f"  {line}", flush=True)

    def failed(self, failure: dict[str, Any]) -> None:
        """The first failure in full."""
        print(f"failed with exit code {failure['code']}", file=sys.stderr)
        for line in failure_lines(failure):
            print(f"  {line}", file=sys.stderr, flush=True)


class TerminalView:
    """Lines as in `PlainView`, above a spinner while starting and a bar with ETA while training."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
            transient=True,
            # On a machine whose cores all train, every redraw takes time from it.
            refresh_per_second=2,
        )
        self._task: TaskID | None = None

    def close(self) -> None:
        """Take the bar away. Call it once, last."""
        self._progress.stop()

    def phase(self, name: str, detail: str) -> None:
        """Show the phase beside the spinner."""
        label = f"{name}  {detail}" if detail else name
        if self._task is None:
            self._task = self._progress.add_task(label, total=None, eta="")
            self._progress.start()
        else:
            self._progress.update(self._task, description=label)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._console.print(Text(text, style="dim"))

    def warning(self, text: str) -> None:
        """Pass it on, marked."""
        self._console.print(Text(f"warning: {text}", style="yellow"))

    def step(self, record: dict[str, Any]) -> None:
        """The line that people search for, and the bar moved on."""
        self._console.print(Text(step_line(record)), soft_wrap=True)
        self.phase("training", "")
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=record["step"],
            total=record["total_steps"],
            eta=f"{record['step']}/{record['total_steps']}  {duration(record['eta_s'])} left",
        )

    def finished(self, outcome: dict[str, Any]) -> None:
        """How it ended and what to do next."""
        self._progress.stop()
        lines = next_commands(outcome, shown(outcome["run_dir"]), program_prefix())
        self._console.print(
            Panel(Text("\n".join(lines)), title=_ending(outcome), border_style="green")
        )

    def failed(self, failure: dict[str, Any]) -> None:
        """The first failure in full."""
        self._progress.stop()
        title = f"failed with exit code {failure['code']}"
        text = Text("\n".join(failure_lines(failure)))
        Console(stderr=True, highlight=False).print(Panel(text, title=title, border_style="red"))


def _ending(outcome: dict[str, Any]) -> str:
    verb = "stopped after saving" if outcome["kind"] == "stopped" else "finished"
    return f"{verb} at step {outcome['step']} in {duration(outcome['elapsed_s'])}"
