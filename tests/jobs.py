"""Small whole runs on several ranks of this machine, without Ray."""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from comms.config import RankEnvironment
from tests.left import metrics
from tests.processes import collect, kill_all, start_processes
from tests.ranks import free_port
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, OptimConfig, RunConfig, SchedConfig, TrainConfig
from trainer.data.config import DataConfig
from trainer.job import Outcome
from trainer.keeping.config import KeepingConfig
from trainer.main import run_job
from trainer.metrics import StepReport
from trainer.model.config import ModelConfig, MoeConfig
from trainer.rl.mail import TrainerMail
from trainer.rl.mailbox import Mailbox
from trainer.status import Status


def write_corpus(folder: Path, *, documents: int = 40) -> Path:
    """Text of documents of very different lengths, the same every time and written once."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent))
    for number in range(documents):
        words = [f"word{(number * 7 + i * i) % 97}" for i in range(3 + (number * 37) % 200)]
        (aside / f"document{number:03d}.txt").write_text(" ".join(words))
    with suppress(OSError):  # another rank was faster
        aside.rename(folder)
    return folder


def tiny_job(folder: Path, **changes: Any) -> JobConfig:
    """A mixture of experts with every auxiliary loss, small enough for a second of training.

    Its text, and the tokens of it, are beside `folder`: so tests share them.
    """
    # On disk: tests leave nothing in the memory of the machine, however they end.
    (folder / "keep").mkdir(parents=True, exist_ok=True)
    sections: dict[str, Any] = {
        "run": RunConfig(name="tiny", dir=str(folder / "runs")),
        "model": ModelConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            intermediate_size=48,
            qk_norm=True,
            moe=MoeConfig(
                num_experts=5,
                top_k=2,
                expert_intermediate_size=24,
                shared_intermediate_size=16,
                aux_loss_weight=0.02,
                z_loss_weight=1e-3,
                bias_update_rate=1e-3,
                first_dense_layers=1,
            ),
        ),
        "data": DataConfig(
            source=str(write_corpus(folder.parent / "tiny-corpus")),
            vocab_size=384,
            seq_len=48,
            block_bytes=4096,
            shuffle_blocks=2,
            cache_dir=str(folder.parent / "tiny-cache"),
        ),
        "train": TrainConfig(steps=6, global_batch_tokens=8 * 48, max_tokens_per_device=2 * 48),
        "optim": OptimConfig(lr=3e-3),
        "sched": SchedConfig(warmup_steps=2),
        "checkpoint": CheckpointConfig(interval_steps=0),
        "keep": KeepingConfig(dir=str(folder / "keep")),
    }
    return JobConfig(**{**sections, **changes})


def train_on_ranks(config: JobConfig, ranks: int, **asked: Any) -> tuple[Outcome, list[StepReport]]:
    """Run a job to its end; how it ended, and rank 0's reports. Raises what a rank raised. `asked`
    is what `start_ranks` may be asked for."""
    found: tuple[Outcome, list[StepReport]] = collect(*start_ranks(config, ranks, **asked))[0]
    return found


def start_ranks(
    config: JobConfig,
    ranks: int,
    *,
    stop_after: int | None = None,
    leave_after: int | None = None,
    explicit: dict[str, str] | None = None,
    mailed: bool = True,
) -> tuple[list[Any], Any]:
    """The processes of a job, and the queue on which each answers once.

    `stop_after` asks rank 0 to stop after that many steps of this process; `leave_after` to make
    way for another set of ranks. Rank 0 of a run by rewards has mail that nobody reads, if
    `mailed`.
    """
    asked = (stop_after, leave_after, explicit or {}, mailed and config.rl.enabled)
    return start_processes(ranks, _work, config, ranks, free_port(), *asked)


def start_until(config: JobConfig, ranks: int, ready: Callable[[], bool]) -> tuple[list[Any], Any]:
    """What `start_ranks` returns, as soon as something holds, while all ranks live."""
    workers, results = start_ranks(config, ranks)
    while not ready():
        time.sleep(0.002)
        assert all(worker.is_alive() for worker in workers)
    return workers, results


def start_until_step(config: JobConfig, ranks: int, step: int) -> tuple[list[Any], Any]:
    """The same, as soon as that many steps are reported."""
    return start_until(config, ranks, lambda: len(metrics(config)) >= step)


def train_until_killed(config: JobConfig, ranks: int, *, step: int) -> int:
    """Train until `step` is reported, kill all ranks; the last step that was reported."""
    workers, _ = start_until_step(config, ranks, step)
    kill_all(workers)
    return len(metrics(config))


def _work(
    rank: int,
    config: JobConfig,
    ranks: int,
    port: int,
    stop_after: int | None,
    leave_after: int | None,
    explicit: dict[str, str],
    mailed: bool,
) -> tuple[Outcome, list[StepReport]]:
    reports: list[StepReport] = []
    outcome = run_job(
        config,
        RankEnvironment.on_this_machine(rank, ranks, port),
        status=Status(),
        explicit=explicit,
        sinks=[],
        # Asked in every step, before its report.
        should_stop=lambda: rank == 0 and len(reports) + 1 == stop_after,
        should_regroup=lambda: rank == 0 and len(reports) + 1 == leave_after,
        host_memory_gib=lambda: 0.0,
        on_report=reports.append,
        mail=TrainerMail(Mailbox(), Mailbox()) if rank == 0 and mailed else None,
    )
    return outcome, reports
