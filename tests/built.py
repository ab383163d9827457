"""A job on this rank, for tests that look inside while it trains."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from comms.config import RankEnvironment
from trainer.build import build
from trainer.config import JobConfig
from trainer.data.corpus import Corpus
from trainer.data.tokenizer import prepare_tokenizer
from trainer.job import Job, Listeners
from trainer.loop import run_step
from trainer.metrics import JsonlSink, StepReport
from trainer.run_folder import RunFolder
from trainer.status import Status
from trainer.vote import Verdict


@contextmanager
def built(
    config: JobConfig,
    rank: int,
    ranks: int,
    *,
    ranks_per_host: int = 1,
    islands: tuple[int, ...] = (),
    host: str | None = None,
    sinks: bool = False,
) -> Iterator[tuple[Job, list[StepReport]]]:
    """The job and what it reports. The ranks have met, and all enter alike. `ranks_per_host` is
    what they are told, whatever is true, as is the name of the `host`; `islands` are those that go
    on. With `sinks`, rank 0
    writes metrics.jsonl and plans.jsonl."""
    here = RankEnvironment.on_this_machine(rank, ranks, 0)
    environment = replace(
        here,
        host=host or here.host,
        local_world_size=ranks_per_host,
        islands=islands,
    )
    folder = RunFolder.of(config.run)
    tokenizer = prepare_tokenizer(config.data, None)
    reports: list[StepReport] = []
    listeners = Listeners(
        status=Status(),
        sinks=(JsonlSink(folder.metrics, folder.plans),) if sinks else (),
        on_report=reports.append,
        should_stop=lambda: False,
        host_memory_gib=lambda: 0.0,
    )
    with closing(Corpus.open(config.data, tokenizer, background=rank == 0)) as corpus:
        corpus.begin(config.run.seed)
        job = build(config, environment, tokenizer=tokenizer, corpus=corpus, listeners=listeners)
        with closing(job):
            yield job, reports
            job.assembly.close()


def take_steps(job: Job, steps: int) -> list[Verdict]:
    """Train so many steps."""
    return [run_step(job, job.progress.step + 1, ended_s=0.0)[0] for _ in range(steps)]
