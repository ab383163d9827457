"""Four ranks on two hosts that train on simulated time, healthy or with a fault planted.

Steps have noise that real ones have: log-normal compute, pauses of single ranks, a slow first step,
checkpoints and validation every so often, another sequence length or recompute from some step on.
Nobody shares a clock: each host's monotonic clock has an offset of its own.
"""

import math
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cluster.watchdog.evidence import ClusterEvidence, HostMemory, LossPoint, RankEvidence
from tests.cluster.watchdog.load import Starved
from tests.cluster.watchdog.setting import FLOPS, GIB, GROUPS, HOSTS, NEVER, RANKS, Setting
from trainer.boards import CollectiveRecord, RankReading


@dataclass
class _Rank:
    rank: int
    random: random.Random
    starved: Starved
    clock_s: float = 0.0
    events: deque[tuple[float, dict[str, Any]]] = field(default_factory=deque)
    seen: dict[str, Any] = field(default_factory=dict)
    """Fields of the reading as of now."""

    last: dict[str, Any] = field(default_factory=dict)
    """And as far as the simulation has come."""

    frozen_s: float = NEVER
    starved_s: float = 0.0
    """Where it computes, by itself; and the same at the end of the last step."""

    told_s: float = 0.0
    awaited: str = ""


def _fields(reading: RankReading) -> dict[str, Any]:
    return {one.name: getattr(reading, one.name) for one in fields(reading)}


class Simulation:
    """Yields what an observer would see, every `poll_s`."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.random = random.Random(setting.seed)
        self.offsets_s = {host: self.random.uniform(0, 1e6) for host in set(HOSTS.values())}
        self.sequences: defaultdict[str, int] = defaultdict(int)
        self.losses: deque[tuple[float, LossPoint]] = deque()
        self.step = 0
        self.onset_step = 0
        self.stuck_s = NEVER
        self.ranks = {rank: self._start(rank) for rank in RANKS}

    def observe(self, until_s: float, *, poll_s: float = 0.25) -> Iterator[ClusterEvidence]:
        """Evidence from now on; the observer's clock is that of the simulation."""
        now_s = 0.0
        while now_s < until_s:
            now_s += poll_s * self.random.uniform(0.8, 1.2)
            while self._covered_s() <= now_s:
                self._simulate_step()
            yield self._evidence(now_s)

    def _start(self, rank: int) -> _Rank:
        chance = random.Random(self.setting.seed * 100 + rank)
        own = _Rank(rank, chance, Starved(self.setting.load, random.Random(chance.random())))
        first = RankReading(
            rank=rank,
            pid=100 + rank,
            generation=0,
            heartbeat_s=0.0,
            phase="first_step",
            phase_since_s=0.0,
            step=1,
            round=0,
            last_sequence={},
            members={name: ranks for name, ranks in GROUPS.items() if rank in ranks},
        )
        own.seen, own.last = _fields(first), _fields(first)
        return own

    def _covered_s(self) -> float:
        return min(own.clock_s for own in self.ranks.values())

    # What a rank does. Every change of its state is a reading with the time from which it holds.

    def _put(self, own: _Rank, **changes: Any) -> None:
        if own.clock_s < NEVER:
            own.last.update(changes)
            own.events.append((own.clock_s, changes))

    def _spend(self, own: _Rank, phase: str, seconds: float, **changes: Any) -> None:
        """Be in `phase` for so long, unless the rank is frozen meanwhile."""
        fault = self.setting.fault
        needed_s, seconds = seconds, own.starved.stretched_s(own.clock_s, seconds)
        own.starved_s += seconds - needed_s
        self._put(own, phase=phase, phase_since_s=self._host_s(own, own.clock_s), **changes)
        if fault is not None and fault.freezes(own.rank, phase, own.clock_s + seconds):
            own.frozen_s = min(own.frozen_s, max(own.clock_s, fault.at_s))
            self.stuck_s = own.frozen_s
            own.clock_s = NEVER
        own.clock_s += seconds

    def _compute_s(self, own: _Rank, share: float, work: float) -> float:
        setting = self.setting
        seconds = share * work * setting.step_s * own.random.lognormvariate(0, setting.noise)
        if own.random.random() < 0.01:
            seconds += min(own.random.expovariate(1 / setting.pause_s), 4 * setting.pause_s)
        if self._at_fault("slow-rank", own.clock_s) and setting.fault.rank == own.rank:  # type: ignore[union-attr]
            seconds *= setting.fault.factor  # type: ignore[union-attr]
        return seconds

    def _at_fault(self, kind: str, clock_s: float) -> bool:
        fault = self.setting.fault
        return fault is not None and fault.kind == kind and clock_s >= fault.at_s

    def _collective(self, name: str, kind: str, seconds: float, sent_bytes: int) -> None:
        """All of `name` meet; each waits for the last."""
        self.sequences[name] += 1
        sequence, members = self.sequences[name], GROUPS[name]
        begin_s = max(self.ranks[rank].clock_s for rank in members)
        across = len({HOSTS[rank] for rank in members}) > 1
        seconds *= self.random.lognormvariate(0, 0.25)
        if begin_s < NEVER and across and self._at_fault("slow-link", begin_s):
            seconds *= self.setting.fault.factor  # type: ignore[union-attr]
        if begin_s < NEVER and across and self._at_fault("cut", begin_s):
            seconds = NEVER
            self.stuck_s = min(self.stuck_s, begin_s)
        seconds = max(self.ranks[rank].starved.stretched_s(begin_s, seconds) for rank in members)
        for own in (self.ranks[rank] for rank in members):
            last = own.last
            at_s = self._host_s(own, own.clock_s)
            open_ = CollectiveRecord(
                communicator=name,
                sequence=sequence,
                kind=kind,
                sent_bytes=sent_bytes,
                phase=last["phase"],
                enqueued_s=at_s,
                started_s=at_s,
                ended_s=None,
                awaited_s=at_s,
            )
            self._put(
                own, pending=(open_,), last_sequence={**last["last_sequence"], name: sequence}
            )
            own.clock_s = begin_s + seconds
            done = replace(open_, ended_s=self._host_s(own, own.clock_s))
            self._put(own, pending=(), recent=(*last["recent"][-15:], done))

    def _host_s(self, own: _Rank, clock_s: float) -> float:
        return clock_s + self.offsets_s[HOSTS[own.rank]]

    def _simulate_step(self) -> None:
        self.step += 1
        step, setting = self.step, self.setting
        long = setting.change_at <= step < 2 * setting.change_at
        work = 2.5 if long else 1.0
        cost = work * (1.3 if step >= setting.change_at else 1.0)
        begin_s = {rank: own.clock_s for rank, own in self.ranks.items()}
        if setting.fault and min(begin_s.values()) < setting.fault.at_s:
            self.onset_step = step
        first_s: dict[int, float] = {}
        data_s: dict[int, float] = {}
        worked_s: dict[int, float] = {}
        for rank, own in self.ranks.items():
            data_s[rank] = 0.02 * setting.step_s * own.random.lognormvariate(0, 0.5)
            if self._at_fault("slow-data", own.clock_s) and setting.fault.rank == rank:  # type: ignore[union-attr]
                data_s[rank] = setting.fault.factor * setting.step_s  # type: ignore[union-attr]
            phase = "first_step" if step == 1 else "data"
            self._spend(own, phase, data_s[rank], step=step, round=0, step_work=work * FLOPS)
            if step == 1:
                self._spend(own, phase, setting.warm_up_s * own.random.uniform(0.5, 1.5))
            else:
                data_s[rank] = own.clock_s - begin_s[rank]
            worked_s[rank] = own.clock_s - own.starved_s
        for number in range(2):
            for own in self.ranks.values():
                self._spend(own, "forward", self._compute_s(own, 0.15, cost), round=number)
                first_s.setdefault(own.rank, own.clock_s - own.starved_s - worked_s[own.rank])
            for name in ("shard/0", "shard/1"):
                self._collective(name, "all_gather", 0.02 * setting.step_s, 1 << 20)
            for own in self.ranks.values():
                self._spend(own, "backward", self._compute_s(own, 0.25, cost))
        for name in ("replica/0", "replica/1"):
            self._collective(name, "all_reduce", 0.05 * setting.step_s, 1 << 22)
        for own in self.ranks.values():
            self._spend(own, "vote", 1e-4)
        self._collective("world", "all_reduce", 0.001, 64)
        for own in self.ranks.values():
            self._spend(own, "update", self._compute_s(own, 0.03, 1.0))
            self._end_step(own, begin_s[own.rank], first_s[own.rank], data_s[own.rank], work)
        self._between_steps()
        self._add_loss()

    def _end_step(
        self, own: _Rank, begin_s: float, compute_s: float, data_s: float, work: float
    ) -> None:
        last = own.last
        waits = [done for done in last["recent"] if done.enqueued_s >= self._host_s(own, begin_s)]
        waited_s = sum(done.duration_s or 0.0 for done in waits)
        waited_s, own.told_s = waited_s + own.starved_s - own.told_s, own.starved_s
        self._put(
            own,
            steps=(*last["steps"][-31:], self.step),
            step_ended_s=(*last["step_ended_s"][-31:], self._host_s(own, own.clock_s)),
            compute_s=(*last["compute_s"][-31:], compute_s),
            waited_s=(*last["waited_s"][-31:], waited_s),
            data_s=(*last["data_s"][-31:], data_s),
            work=(*last["work"][-31:], work * FLOPS),
        )

    def _between_steps(self) -> None:
        """Checkpoints, which one rank writes longest while the others wait; validation."""
        if self.step % self.setting.save_every == 0:
            for own in self.ranks.values():
                stall_s = 6.0 * own.random.lognormvariate(0, 0.4) * (2 if own.rank == 0 else 1)
                self._spend(own, "saving", stall_s)
            self._collective("world", "barrier", 0.001, 0)
        if self.step % self.setting.validate_every == 0:
            for own in self.ranks.values():
                self._spend(own, "validation", 20.0 * own.random.lognormvariate(0, 0.1))

    def _add_loss(self) -> None:
        nan = self._at_fault("nan", self._covered_s())
        loss = 2.0 + 4.0 / (1 + self.step / 50) + self.random.gauss(0, 0.05)
        point = LossPoint(
            step=self.step,
            loss=math.nan if nan else loss,
            grad_norm=self.random.lognormvariate(0, 0.5),
            bad_ranks=(self.setting.fault.rank,) if nan else (),  # type: ignore[union-attr]
        )
        self.losses.append((self._covered_s(), point))

    # What an observer sees.

    def _evidence(self, now_s: float) -> ClusterEvidence:
        points = []
        while self.losses and self.losses[0][0] <= now_s:
            points.append(self.losses.popleft()[1])
        leak = (now_s - self.setting.fault.at_s) if self._at_fault("leak", now_s) else 0.0  # type: ignore[union-attr]
        used = int((20 + 0.05 * leak + self.random.gauss(0, 0.3)) * GIB)
        return ClusterEvidence(
            now_s=now_s,
            ranks={rank: self._seen(own, now_s) for rank, own in self.ranks.items()},
            losses=tuple(points),
            memory={"host-a": HostMemory(used_bytes=used, total_bytes=64 * GIB)},
        )

    def _seen(self, own: _Rank, now_s: float) -> RankEvidence:
        silent = (
            self._at_fault("silent-host", now_s)
            and HOSTS[own.rank] == HOSTS[self.setting.fault.rank]  # type: ignore[union-attr]
        )
        heard_s = self.setting.fault.at_s if silent else now_s  # type: ignore[union-attr]
        while own.events and own.events[0][0] <= heard_s:
            own.seen.update(own.events.popleft()[1])
        frozen = own.frozen_s <= now_s
        process = self.setting.fault.process if frozen and self.setting.fault else "sleeping"
        beats = not (frozen and process in ("stopped", "gone"))
        beat_s = now_s - 0.1 if beats else own.frozen_s
        own.seen["heartbeat_s"] = self._host_s(own, beat_s)
        return RankEvidence(
            rank=own.rank,
            host=HOSTS[own.rank],
            process=process,
            silent_s=now_s - heard_s,
            reading=RankReading(**own.seen),
            read_s=self._host_s(own, now_s),
            starved_s=own.starved.total_s(heard_s, own.frozen_s),
        )
