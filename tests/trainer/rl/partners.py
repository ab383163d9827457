"""Whole runs by rewards without Ray: ranks that train, and one thread in the first of them that
samples with real weights over a real channel and hands out batches in turns."""

import threading
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.weights.blocks import Block
from comms.weights.channel import WeightChannel
from comms.weights.meeting import Meeting
from comms.weights.plan import Member, Part
from tests.processes import collect, start_processes
from tests.ranks import free_port
from trainer.config import JobConfig
from trainer.main import run_job
from trainer.model.decoder import Decoder
from trainer.model.resolve import resolve_architecture
from trainer.rl.advantages import centred
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Request, Sampling
from trainer.rl.generate import answers
from trainer.rl.mail import TrainerMail
from trainer.rl.mailbox import Mailbox
from trainer.rl.messages import (
    ChannelPlace,
    Committed,
    Publish,
    Sample,
    TrainerReady,
    TrainOn,
)
from trainer.status import Status

VOCABULARY = 259
ENGINE = EngineConfig(block_tokens=8, kv_bytes=2**20, record_routing=True)


@dataclass(kw_only=True)
class Seen:
    """What the thread saw."""

    told: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """Mean of each batch."""

    updates: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Version and weights of every update, as numpy arrays."""


@dataclass(kw_only=True)
class Partner:
    """Samples and hands out. The reward of an answer is the share of one token in it, times 4."""

    mail: TrainerMail
    config: JobConfig
    stop_channel_at: int = -1
    """Version at which it leaves the channel without a word, and asks for another."""

    ahead: int = 0
    """Batches that are handed out beside the step before."""

    seen: Seen = field(default_factory=Seen)

    def run(self) -> None:
        """Until the last step is committed."""
        model = Decoder(resolve_architecture(self.config.model, VOCABULARY))
        self._engine = Engine(model, ENGINE)
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False
        )
        ready = self._await(TrainerReady)
        self._join(ready, ready.version)
        last = self.config.train.steps - self.config.rl.supervised_steps
        next_version = ready.version
        for version in range(ready.version, last):
            while next_version < last and next_version <= version + self.ahead:
                self._hand_out(next_version)
                next_version += 1
            committed = self._await(Committed)
            assert committed.version == version
            if version + 1 == self.stop_channel_at:
                self._channel.close()
                self._join(ready, version + 1)
            elif version + 1 < last:
                self._take()

    def _await(self, kind: type) -> Any:
        while True:
            message = self.mail.outbox.take(30.0)
            assert message is not None, f"nothing came while waiting for {kind.__name__}"
            self.seen.told.append(message)
            if isinstance(message, kind):
                return message

    def _join(self, ready: TrainerReady, version: int) -> None:
        names = (*(f"trainer {rank}" for rank in range(ready.trainers)), "rollout")
        place = ChannelPlace(
            host="127.0.0.1",
            port=self._store.port,
            prefix=f"w/{version}",
            names=names,
            trainers=ready.trainers,
        )
        self.mail.inbox.put(Publish(channel=place))
        store = dist.TCPStore(
            "127.0.0.1", self._store.port, is_master=False, wait_for_workers=False
        )
        self._channel = WeightChannel.open(
            Meeting(store, ready.trainers, names, place.prefix),
            Member(host="sampling", takes=taken(self._engine)),
            deadline_s=20,
        )
        self._take()

    def _take(self) -> None:
        update = self._channel.subscribe(deadline_s=20)
        whole = dict(update.whole())
        self._engine.load(update.version, whole.items())
        copies = {name: value.float().numpy().copy() for name, value in whole.items()}
        self.seen.updates.append((update.version, copies))

    def _hand_out(self, version: int) -> None:
        rl, rollout = self.config.rl, self.config.rollout
        samples: list[Sample] = []
        rewards: list[float] = []
        for number in range(rl.prompts_per_step):
            prompt = tuple(3 + (5 * version + 7 * number + i) % 40 for i in range(3 + number))
            request = Request(
                id=f"{version}/{number}",
                prompt=prompt,
                seeds=tuple(1000 * version + 10 * number + i for i in range(rl.samples_per_prompt)),
                sampling=Sampling(max_new_tokens=rollout.max_new_tokens - number),
            )
            found = sorted(answers(self._engine, [request]), key=lambda answer: answer.sample)
            scores = [4.0 * sum(t < 64 for t in a.tokens) / len(a.tokens) for a in found]
            rewards += scores
            samples += [
                sample_of(prompt, answer, advantage=advantage, reward=reward, group=number)
                for answer, advantage, reward in zip(found, centred(scores), scores, strict=True)
            ]
        self.seen.rewards.append(sum(rewards) / len(rewards))
        figures = {"reward/mean": self.seen.rewards[-1]}
        self.mail.inbox.put(TrainOn(version=version, samples=tuple(samples), figures=figures))


def taken(engine: Engine) -> dict[str, Part]:
    """All weights, whole."""
    return {
        name: Part(
            shape=tuple(value.shape),
            dtype="float32",
            blocks=(Block((0,) * value.ndim, tuple(value.shape)),),
        )
        for name, value in engine._model.state_dict().items()
        if value.is_floating_point()
    }


def sample_of(prompt: tuple[int, ...], answer: Any, **known: Any) -> Sample:
    """An answer of the engine as a sample."""
    before, after = len(prompt), len(answer.tokens)

    def padded(values: Any, fill: float, dtype: Any) -> Any:
        return np.array([*[fill] * before, *values], dtype=dtype)

    return Sample(
        tokens=np.array([*prompt, *answer.tokens], dtype=np.int32),
        loss_mask=padded([1] * after, 0, np.int8),
        log_probs=padded(answer.logprobs, 0.0, np.float32),
        model_log_probs=padded(answer.model_logprobs, 0.0, np.float32),
        versions=padded(answer.versions, -1, np.int32),
        routing=answer.routing,
        **known,
    )


def run_with_partner(
    config: JobConfig, ranks: int, *, stop_after: int | None = None, **partner: Any
) -> tuple[Any, list[Any], Seen]:
    """Outcome, rank 0's reports, and what the partner saw. Raises what a rank raised."""
    arguments = (config, ranks, free_port(), stop_after, partner)
    return collect(*start_processes(ranks, _run, *arguments))[0]


def _run(
    rank: int,
    config: JobConfig,
    ranks: int,
    port: int,
    stop_after: int | None,
    partner: dict[str, Any],
) -> Any:
    reports: list[Any] = []
    mail = TrainerMail(Mailbox(), Mailbox()) if rank == 0 else None
    other = None if mail is None else Partner(mail=mail, config=config, **partner)
    failed: list[BaseException] = []

    def sample() -> None:
        assert other is not None
        try:
            other.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=sample, daemon=True)
    if other is not None:
        thread.start()
    outcome = run_job(
        config,
        RankEnvironment.on_this_machine(rank, ranks, port),
        status=Status(),
        explicit={},
        sinks=[],
        should_stop=lambda: bool(failed) or (rank == 0 and len(reports) + 1 == stop_after),
        host_memory_gib=lambda: 0.0,
        on_report=reports.append,
        mail=mail,
    )
    if failed:
        raise failed[0]
    return outcome, reports, None if other is None else other.seen
