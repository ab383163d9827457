"""What a run is at one of its steps: what checkpoints and snapshots hold of it."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from comms.config import RankEnvironment
from trainer.assembly import Assembly
from trainer.islands.checkpoints import saved_with
from trainer.islands.exchange import Islands
from trainer.memory_saver import Describe
from trainer.probe import probe_loss
from trainer.progress import Progress
from trainer.replica_state import describe_replicas, replica_tensors
from trainer.saving import Snapshot
from trainer.state import arithmetic_of, tensors_of


def describer_of(
    assembly: Assembly, environment: RankEnvironment, progress: Progress, cursor: dict[str, Any]
) -> Describe:
    """A function that says where the run is now. It sends nothing and waits for nothing."""
    unchanging = {
        "data": cursor,
        "architecture": asdict(assembly.architecture),
        "layout": asdict(assembly.layout),
        "arithmetic": arithmetic_of(assembly, environment),
    }

    def describe() -> dict[str, Any]:
        counts = {"step": progress.step, "tokens": progress.tokens, "updates": progress.updates}
        return {**counts, "numeric": progress.numeric_record(), **unchanging}

    return describe


def kept_of(assembly: Assembly, describe_run: Describe, islands: Islands | None) -> Describe:
    """A function that says what a snapshot in memory has to say. It waits for nothing either."""

    def describe() -> dict[str, Any]:
        described = {**describe_run(), "replicas": describe_replicas(assembly)}
        if islands is not None:
            described["outer"] = islands.kept_description()
        return described

    return describe


def snapshot_of(
    assembly: Assembly,
    environment: RankEnvironment,
    describe_run: Describe,
    islands: Islands | None,
) -> Snapshot:
    """A function that says what the run is now: its tensors, and their description."""

    def snapshot() -> tuple[dict[str, Tensor], dict[str, Any]]:
        loss = probe_loss(assembly, environment)
        described = {
            **describe_run(),
            "probe_loss": loss,
            "replicas": describe_replicas(assembly),
        }
        tensors = tensors_of(assembly.weights, assembly.optimizer)
        tensors |= replica_tensors(assembly, environment.rank)
        if islands is not None:
            tensors, described["outer"] = saved_with(
                islands, tensors, probe_loss=loss, updates=described["updates"]
            )
        return tensors, described

    return snapshot
