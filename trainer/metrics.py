"""What one step reports, and where reports go."""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainer.exchanged import Exchanged
from trainer.movement import ActivationMovement, Movement
from trainer.planner.plan import StepPlan, Terms
from trainer.run_folder import append_line, is_full


@dataclass(frozen=True, kw_only=True)
class IslandFigures:
    """Of one step of several islands."""

    loss_gap: float
    """Largest less smallest loss of an island."""

    wait_s: float
    """Seconds this rank waited for other islands."""

    sent_bytes: int
    """What this rank sent to other islands."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Everything measured in one step; the same on every rank of an island but for memory. Rank 0
    reports the losses of all islands, and for the rest those of its own."""

    step: int
    """Optimizer steps done, this one included."""

    total_steps: int
    time: float
    """Seconds since the epoch at the end of the step."""

    loss: float
    """Mean over the step's target tokens, auxiliary losses not included."""

    aux_loss: float
    """Mean of the weighted auxiliary losses."""

    grad_norm: float
    """Global norm before clipping."""

    lr: float
    tokens: int
    """Input tokens trained on since the run began, padding not counted."""

    step_tokens: int
    """Input tokens of this step."""

    step_s: float
    mfu: float
    """Model FLOP/s over the devices' peak."""

    memory_gib: float
    """Highest device memory of this rank; on CPU, resident memory of the process."""

    host_memory_gib: float
    """Memory in use on this rank's host, all processes together."""

    expert_imbalance: float
    """Most loaded expert over the mean, worst layer; 0 without experts."""

    dropped_share: float
    """Share of the routed assignments that experts had no room for."""

    skipped: bool
    """Whether the update was dropped because loss or gradients were not finite."""

    world_size: int
    plan: StepPlan
    measured: Terms
    bytes_sent: dict[str, int]
    """Payload bytes this rank sent, per axis and collective."""

    snapshot_wait_s: float = 0.0
    """How long the update waited for the snapshot of the step before."""

    movement: Movement | None = None
    """What the optimizer moved between memory, disk and device; None where its states stay."""

    activations: ActivationMovement | None = None
    """What activations moved; None where none can."""

    exchanged: Exchanged | None = None
    """What replicas sent each other compressed; None where they send whole gradients."""

    islands: IslandFigures | None = None
    """None where there is one."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """What the step's work reports beside its loss, by the names that metrics have."""

    @property
    def tokens_per_s(self) -> float:
        """Input tokens per second, all ranks together."""
        return self.step_tokens / self.step_s

    def metrics_record(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {
            "step": self.step,
            "time": self.time,
            "loss": self.loss,
            "aux_loss": self.aux_loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_device": self.tokens_per_s / self.world_size,
            "mfu": self.mfu,
            "step_s": self.step_s,
            "data_s": self.measured.data_s,
            "predicted_step_s": self.plan.predicted.total_s,
            "memory_gib": self.memory_gib,
            "host_memory_gib": self.host_memory_gib,
            "expert_imbalance": self.expert_imbalance,
            "dropped_share": self.dropped_share,
            "skipped": self.skipped,
            "snapshot_wait_s": self.snapshot_wait_s,
            **self._movement_record(),
            **self._activation_record(),
            **self._exchange_record(),
            **self._island_record(),
            **self.figures,
        }

    def _island_record(self) -> dict[str, float]:
        figures = self.islands
        if figures is None:
            return {}
        return {
            "island_loss_gap": figures.loss_gap,
            "island_wait_s": figures.wait_s,
            "island_sent_bytes": figures.sent_bytes,
        }

    def _movement_record(self) -> dict[str, float]:
        moved = self.movement
        if moved is None:
            return {}
        return {
            "offload_moved_gib": sum(moved.moved_bytes.values()) / 2**30,
            "offload_hidden": moved.hidden,
            "offload_stall_s": moved.stall_s,
            "offload_device_share": moved.device_share,
        }

    def _activation_record(self) -> dict[str, float]:
        moved = self.activations
        if moved is None:
            return {}
        return {
            "activation_moved_gib": (moved.stored_bytes + moved.fetched_bytes) / 2**30,
            "activation_recomputed_gib": moved.recomputed_bytes / 2**30,
            "activation_saved_gib": moved.saved_bytes / 2**30,
            "activation_hidden_s": moved.hidden_s,
            "activation_exposed_s": moved.exposed_s,
        }

    def _exchange_record(self) -> dict[str, float]:
        sent = self.exchanged
        if sent is None:
            return {}
        return {
            "replica_sent_mib": sent.sent_bytes / 2**20,
            "replica_dense_mib": sent.dense_bytes / 2**20,
            "replica_saving": sent.saving,
            "replica_exposed_s": sent.waited_s,
            "replica_error_norm": sent.error_norm,
        }

    def plan_record(self) -> dict[str, Any]:
        """The line of plans.jsonl."""
        plan = self.plan
        return {
            "step": self.step,
            "layout": asdict(plan.layout),
            "rounds": [
                [[g.first_rank, g.size, list(g.sequences)] for g in r.groups] for r in plan.rounds
            ],
            "attention": plan.attention,
            "ring_hosts": list(plan.ring_hosts),
            "host_groups": [list(group) for group in plan.host_groups],
            "activation": plan.activation,
            "optimizer": plan.optimizer,
            "optimizer_share": plan.optimizer_share,
            "compression": plan.compression,
            "replica_bytes": plan.replica_bytes,
            "outer": None if plan.outer is None else asdict(plan.outer),
            "predicted": asdict(plan.predicted),
            "measured": asdict(self.measured),
            "bytes": self.bytes_record(),
            "plan_s": plan.plan_s,
            "reasons": list(plan.reasons),
        }

    def bytes_record(self) -> dict[str, int]:
        """Bytes sent, and moved between memory, disk and device, by route."""
        moved_bytes = {} if self.movement is None else self.movement.moved_bytes
        if self.activations is not None:
            moved_bytes = {
                **moved_bytes,
                "activations_stored": self.activations.stored_bytes,
                "activations_fetched": self.activations.fetched_bytes,
            }
        return {
            **self.bytes_sent,
            **{f"offload/{route}": moved for route, moved in moved_bytes.items()},
        }


class Sink(Protocol):
    """Somewhere that reports of rank 0 go."""

    def write(self, report: StepReport) -> None:
        """Take one step's report. Called once per step, from the training thread."""

    def close(self) -> None:
        """Flush. Called once, after the last report."""


class JsonlSink:
    """metrics.jsonl and plans.jsonl. While their disk is full, lines wait for room."""

    def __init__(self, metrics: Path, plans: Path) -> None:
        self._metrics = metrics
        self._plans = plans
        self._waiting: deque[tuple[Path, dict[str, Any]]] = deque()

    def write(self, report: StepReport) -> None:
        """Append one line to each file."""
        self._waiting.append((self._metrics, report.metrics_record()))
        self._waiting.append((self._plans, report.plan_record()))
        self._append()

    def close(self) -> None:
        """Append what still waits, if there is room."""
        self._append()

    def _append(self) -> None:
        while self._waiting:
            try:
                append_line(*self._waiting[0])
            except OSError as error:
                if not is_full(error):
                    raise
                return
            self._waiting.popleft()
