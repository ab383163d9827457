"""The live state of a run, from the files in its folder."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.recovery.incidents import INCIDENT_KINDS
from recipes.clean import kept_in_memory
from recipes.tail import last_of_kind, tail
from recipes.wording import gib, of_rewards
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder

_REFRESH_S = 0.5


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What is known of a run at one moment."""

    name: str
    root: str
    ended: Mapping[str, Any] | None
    """exit.json; None while the run goes on."""

    newest: Mapping[str, Any] | None
    """Last line of metrics.jsonl; None before the first step."""

    since_step_s: float | None
    """Seconds since that step."""

    generation: int
    ranks: tuple[Mapping[str, Any], ...]
    incidents: tuple[Mapping[str, Any], ...]
    """The last ones, oldest first."""

    memory_bytes: int = 0
    """What an ended run still holds in this host's memory."""

    def rows(self) -> list[tuple[str, str]]:
        """For people."""
        rows = [("state", self._state())]
        if self.newest is not None:
            newest = self.newest
            rows += [
                ("step", f"{newest['step']}, {self.since_step_s:.1f} s ago"),
                ("loss", f"{newest['loss']:.4f}"),
                ("speed", f"{newest['tokens_per_s']:,.0f} tokens/s, {newest['step_s']:.3f} s/step"),
            ]
            rewards = "  ".join(of_rewards(newest))
            rows += [("rewards", rewards)] if rewards else []
        hosts: dict[str, list[str]] = {}
        for rank in self.ranks:
            hosts.setdefault(rank["host"], []).append(str(rank["rank"]))
        rows += [(host, f"ranks {', '.join(ranks)}") for host, ranks in hosts.items()]
        rows += [(incident["kind"], _told(incident)) for incident in self.incidents]
        if self.memory_bytes:
            rows.append(
                (
                    "memory",
                    f"{gib(self.memory_bytes)} of snapshots wait for the next start; "
                    f"`braid clean {self.root}` frees them",
                )
            )
        return rows

    def _state(self) -> str:
        if self.ended is not None:
            return f"ended with code {self.ended['code']}: {self.ended['cause']}"
        if self.newest is None:
            return "starting"
        return f"training, generation {self.generation}"


def state_of(root: Path) -> RunState:
    """Read a run folder. Raises RecipeError where it is none."""
    folder = RunFolder(root)
    if not folder.recipe.exists():
        raise RecipeError(f"{root} is no run folder: recipe.yaml is missing; see `ls runs`")
    newest = tail(folder.metrics)[-1:]
    events = tail(folder.events)
    started = last_of_kind(folder.events, "ranks_started") or {}
    ended = json.loads(folder.exit.read_text()) if folder.exit.exists() else None
    return RunState(
        name=root.name,
        root=str(root),
        ended=ended,
        newest=newest[0] if newest else None,
        since_step_s=time.time() - newest[0]["time"] if newest else None,
        generation=started.get("generation", 0),
        ranks=tuple(started.get("ranks", ())),
        memory_bytes=sum(kept_in_memory(folder).values()) if ended else 0,
        incidents=tuple(e for e in events if e["kind"] in INCIDENT_KINDS)[-10:],
    )


def follow(root: Path) -> None:
    """Show the state until the run has ended or the user interrupts."""
    console = Console(highlight=False)
    state = state_of(root)
    with Live(_table(state), console=console, auto_refresh=False) as live:
        try:
            while state.ended is None:
                time.sleep(_REFRESH_S)
                state = state_of(root)
                live.update(_table(state), refresh=True)
        except KeyboardInterrupt:
            return


def _table(state: RunState) -> Table:
    table = Table(title=state.name, title_justify="left", show_header=False, box=None)
    for name, text in state.rows():
        table.add_row(Text(name, style="bold"), Text(text))
    return table


def _told(event: Mapping[str, Any]) -> str:
    parts = [time.strftime("%H:%M:%S", time.localtime(event["time"])), f"step {event['step']}"]
    if event.get("rank") is not None:
        parts.append(f"rank {event['rank']} on {event.get('host')}")
    if "worker" in event:
        parts.append(str(event["worker"]))
    if "resumed_s" in event:
        parts.append(f"after {event['resumed_s']:.1f} s, {event['lost_steps']} steps lost")
    if event.get("cause"):
        parts.append(str(event["cause"]))
    return ", ".join(parts)
