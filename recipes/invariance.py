"""Whether a recipe's losses depend on how many ranks train it, or in how many rounds.

Every variant trains the same first steps on the CPU in fp32, in processes of this machine, without
Ray and without compression, which is lossy. Losses are compared with those of one rank in one
round; gradient norms are told beside them.
"""

import math
import multiprocessing
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from comms.config import CommsConfig
from parallel.config import ParallelConfig
from parallel.layout import divisors
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.errors import BraidError, InfrastructureError, RecipeError
from trainer.keeping.config import KeepingConfig
from trainer.numeric.config import NumericConfig

RELATIVE_BOUND = 1e-5
"""On the losses of the first steps. One fp32 sum in another order differs by some 1e-7; updates
carry such differences on and enlarge them."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to spread the same global batch."""

    replica: int = 1
    shard: int = 1
    rounds: int = 1
    pp: int = 1
    tp: int = 1
    sp: int | Literal["auto"] = 1
    ep: int = 1
    shard_weights: int | Literal["auto"] = "auto"
    shard_gradients: int | Literal["auto"] = "auto"
    schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    rebalance_interval_steps: int = 0

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.replica * self.shard * self.pp * self.tp

    @property
    def parallel(self) -> ParallelConfig:
        """As a recipe says it."""
        return ParallelConfig(
            **{name: value for name, value in asdict(self).items() if name != "rounds"}
        )

    def __str__(self) -> str:
        plain = Variant()
        axes = {name: value for name, value in asdict(self).items() if value != asdict(plain)[name]}
        axes.pop("rounds", None)
        spread = " × ".join(f"{name} {value}" for name, value in axes.items()) or "one rank"
        return f"{spread}, rounds {self.rounds}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A variant's losses beside those of one rank in one round."""

    variant: Variant
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    largest_difference: float
    """Relative, over all losses."""

    @property
    def holds(self) -> bool:
        """Whether the losses agree within the bound."""
        return self.largest_difference <= RELATIVE_BOUND


def variants_of(job: JobConfig, worlds: Sequence[int], rounds: Sequence[int]) -> list[Variant]:
    """All that the recipe's batch can be split into, one rank in one round first."""
    sequences = job.train.global_batch_tokens // job.data.seq_len
    found = [
        Variant(replica=replica, shard=world // replica, rounds=count)
        for world in worlds
        for replica in reversed(divisors(world))
        for count in rounds
        if sequences % (world * count) == 0
    ]
    alone = Variant(replica=1, shard=1, rounds=1)
    if len([v for v in found if v != alone]) == 0:
        raise RecipeError(
            f"train.global_batch_tokens={job.train.global_batch_tokens} is {sequences} sequences, "
            f"which no choice of {list(worlds)} ranks and {list(rounds)} rounds divides; raise it"
        )
    return [alone, *(v for v in found if v != alone)]


def compare(job: JobConfig, variants: Sequence[Variant], *, steps: int) -> list[Comparison]:
    """Train `steps` steps in every variant. The first variant is the reference."""
    if not 1 <= steps <= job.train.steps:
        raise RecipeError(
            f"--steps {steps} must lie between 1 and train.steps={job.train.steps} of the recipe"
        )
    comparisons: list[Comparison] = []
    for variant in variants:
        losses, norms = _train(job, variant, steps=steps)
        reference = comparisons[0].losses if comparisons else losses
        difference = largest_difference(losses, reference)
        comparisons.append(
            Comparison(
                variant=variant, losses=losses, grad_norms=norms, largest_difference=difference
            )
        )
    return comparisons


def report_record(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All figures, for scripts."""
    return {
        "relative_bound": RELATIVE_BOUND,
        "holds": all(c.holds for c in comparisons),
        "variants": [
            {
                **asdict(c.variant),
                "losses": list(c.losses),
                "grad_norms": list(c.grad_norms),
                "largest_difference": c.largest_difference,
                "holds": c.holds,
            }
            for c in comparisons
        ],
    }


def report_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """A line per variant, for people."""
    return [
        (
            str(c.variant),
            f"last loss {c.losses[-1]:.6f}, largest relative difference "
            f"{c.largest_difference:.1e}{'' if c.holds else f' > {RELATIVE_BOUND:g}'}",
        )
        for c in comparisons
    ]


def largest_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference; infinite where a loss is not finite."""
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def _train(
    job: JobConfig, variant: Variant, *, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with tempfile.TemporaryDirectory(prefix="braid-invariance-") as folder:
        config = _spread(job, variant, folder)
        context = multiprocessing.get_context("forkserver")
        # One server imports torch, and every rank of every variant is forked from it.
        context.set_forkserver_preload(["trainer.main"])
        reports = context.SimpleQueue()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = [
            context.Process(target=_work, args=(config, rank, variant.ranks, port, steps, reports))
            for rank in range(variant.ranks)
        ]
        for worker in workers:
            worker.start()
        rows = _collect(workers, reports, steps)
        for worker in workers:
            worker.join()
        if len(rows) < steps or any(worker.exitcode for worker in workers):
            raise InfrastructureError(
                f"{variant} did not train: exit codes {[w.exitcode for w in workers]}; run the "
                "recipe with braid run to see why"
            )
    return tuple(row[0] for row in rows), tuple(row[1] for row in rows)


def _collect(workers: Sequence[Any], reports: Any, steps: int) -> list[tuple[float, float]]:
    """What rank 0 reported; fewer than `steps` where a worker died. Raises what a rank raised."""
    rows: list[tuple[float, float]] = []
    while len(rows) < steps:
        if not reports.empty():
            news = reports.get()
            if isinstance(news, BraidError):
                _end(workers)
                raise news
            rows.append(news)
        elif any(worker.exitcode is not None for worker in workers) and reports.empty():
            # Whoever has ended has said all before: looked at again.
            _end(workers)
            break
        else:
            workers[0].join(timeout=0.02)
    return rows


def _end(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.terminate()
        worker.join()


def _spread(job: JobConfig, variant: Variant, folder: str) -> JobConfig:
    data_ranks = variant.replica * variant.shard
    tokens = job.train.global_batch_tokens // (data_ranks * variant.rounds)
    return replace(
        job,
        run=replace(job.run, dir=folder, name="variant", resume="never"),
        train=replace(
            job.train,
            max_tokens_per_device=tokens,
            precision="fp32",
        ),
        parallel=variant.parallel,
        # Nothing samples here: of a run by rewards its supervised steps are compared.
        rl=replace(job.rl, enabled=False),
        checkpoint=CheckpointConfig(interval_steps=0, rehearse=False),
        keep=KeepingConfig(interval_steps=0),
        numeric=NumericConfig(),
        comms=CommsConfig(),
    )


def _work(config: JobConfig, rank: int, ranks: int, port: int, steps: int, reports: Any) -> None:
    # Here and not above, so that the command line starts without torch.
    from comms.config import RankEnvironment
    from trainer.main import run_job
    from trainer.metrics import StepReport
    from trainer.status import Status

    done = 0

    def report(step: StepReport) -> None:
        nonlocal done
        done += 1
        if rank == 0:
            reports.put((step.loss, step.grad_norm))

    try:
        run_job(
            config,
            RankEnvironment.on_this_machine(rank, ranks, port),
            status=Status(),
            explicit={},
            sinks=[],
            # Asked in every step, before its report.
            should_stop=lambda: done >= steps - 1,
            host_memory_gib=lambda: 0.0,
            on_report=report,
        )
    except BraidError as error:
        reports.put(error)
        raise
