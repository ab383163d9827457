"""What the driver tells the person at the terminal, as a protocol."""

from typing import Any, Protocol


class RunView(Protocol):
    """Shows one run while it happens. All methods are called from the driver's main thread."""

    def phase(self, name: str, detail: str) -> None:
        """A phase of the run began, or went on long enough to say so again.

        Called on entering each of `connecting`, `checking`, `placing`, `starting`, `joining`,
        `building`, `loading`, `first_step`, `training`, `stopping`, and about every ten seconds
        while a start-up phase lasts. `detail` names what is waited for and for how long, or is
        empty.
        """

    def note(self, text: str) -> None:
        """Something worth knowing, of one or several lines. Called before and between steps."""

    def warning(self, text: str) -> None:
        """Something that may become a failure. Called at any time."""

    def step(self, record: dict[str, Any]) -> None:
        """One step is done: the line of metrics.jsonl with `total_steps` and `eta_s` added.

        Called once for every step, in order, within about a second of its end.
        """

    def finished(self, outcome: dict[str, Any]) -> None:
        """The run ended as asked: {`kind`: "finished" or "stopped", `step`, `checkpoint` (folder
        name or None), `run_dir`, `elapsed_s`}. Called at most once, after the last step."""

    def failed(self, failure: dict[str, Any]) -> None:
        """The run ended otherwise: the content of exit.json {`code`, `cause`, `host`, `rank`,
        `phase`, `step`, `last_lines`, `time`} and `log`, the path of that process's log (None
        where no process is to blame). Called at most once; only warnings may follow."""
