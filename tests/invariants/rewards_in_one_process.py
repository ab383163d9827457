"""A whole run by rewards in one process: a rank that trains, a worker that samples, a conductor."""

import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from comms.config import RankEnvironment
from tests.processes import collect, start_processes
from tests.ranks import free_port
from trainer.config import JobConfig
from trainer.main import run_job
from trainer.metrics import StepReport
from trainer.reads import ReadLog
from trainer.rl.conducting.actions import Actions
from trainer.rl.conducting.conductor import Conductor
from trainer.rl.mail import TrainerMail
from trainer.rl.mailbox import Mailbox
from trainer.rl.rewards.outcome import RewardResult
from trainer.rl.rollout.worker import run_rollouts
from trainer.status import Status


class OneProcess:
    """Threads for those who sample and for the conductor, beside the one that trains."""

    def __init__(self, config: JobConfig) -> None:
        self.log = ReadLog()
        self._config = config
        self._watched = self.log.watch(config)
        self._trainer: TrainerMail = TrainerMail(Mailbox(), Mailbox())
        self._inbox: Mailbox[Any] = Mailbox()
        self._outbox: Mailbox[Any] = Mailbox()
        self._over = threading.Event()
        self._failed: list[BaseException] = []

    def run(self) -> list[StepReport]:
        """To the end. Raises what went wrong first."""
        threads = [
            threading.Thread(target=self._guarded, args=(work,))
            for work in (self._sample, self._conduct)
        ]
        for thread in threads:
            thread.start()
        reports: list[StepReport] = []
        try:
            run_job(
                self._config,
                RankEnvironment.on_this_machine(0, 1, free_port()),
                status=Status(),
                explicit={},
                sinks=[],
                should_stop=lambda: bool(self._failed),
                host_memory_gib=lambda: 0.0,
                on_report=reports.append,
                mail=self._trainer,
            )
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if self._failed:
            raise self._failed[0]
        return reports

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as error:
            self._failed.append(error)

    def _sample(self) -> None:
        run_rollouts(
            self._watched,
            name="sampler",
            host="here",
            device="cpu",
            threads=1,
            inbox=self._inbox,
            outbox=self._outbox,
            should_stop=self._over.is_set,
        )

    def _conduct(self) -> None:
        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False
        )
        config = self._watched
        conductor = Conductor(
            config.rl,
            config.rollout,
            seed=0,
            last_version=self._config.train.steps - self._config.rl.supervised_steps,
            store=("127.0.0.1", store.port),
        )
        self._act(conductor, conductor.rollout_up("sampler", time.monotonic()))
        while not self._over.is_set():
            for told in self._trainer.outbox.take_all(0.002):
                self._act(conductor, conductor.on_trainer(told, time.monotonic()))
            for said in self._outbox.take_all(0.002):
                self._act(conductor, conductor.on_rollout("sampler", said, time.monotonic()))
            self._act(conductor, conductor.tick(time.monotonic()))

    def _act(self, conductor: Conductor, actions: Actions) -> None:
        self._trainer.inbox.put(*actions.to_trainer)
        self._inbox.put(*actions.to_rollouts.get("sampler", ()))
        results = [
            RewardResult(
                number=asked.number, rewards=tuple(float(len(c)) for c in asked.completions)
            )
            for asked in actions.rewards
        ]
        if results:
            self._act(conductor, conductor.on_rewards(results, time.monotonic()))


def run_in_one_process(config: JobConfig) -> tuple[frozenset[str], list[dict[str, Any]]]:
    """Keys that conductor and sampler read, and the lines of metrics.jsonl. Raises what a part
    raised."""
    return collect(*start_processes(1, _work, config))[0]


def _work(number: int, config: JobConfig) -> tuple[frozenset[str], list[dict[str, Any]]]:
    whole = OneProcess(config)
    reports = whole.run()
    return whole.log.read, [report.metrics_record() for report in reports]
