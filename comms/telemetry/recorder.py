"""Records what one rank sends and waits for on its board.

    ledger = Ledger(recorder=Recorder(Board.create(path, rank=rank, pid=os.getpid())))
    with ledger.collective("data", "all_reduce", sent_bytes, group): dist.all_reduce(x, group=group)

and, from any process of the host, `read_board(path)`.

Guarantees, each asserted in tests/comms/telemetry/test_recorder.py:
- ranks that meet in a collective give it the same communicator and the same number;
- a collective that failed stays pending: nobody saw its end;
- own compute of a step ends where the rank first waits for others, and is without the time in
  which the training thread waited for a core: that counts as waited;
- the heartbeat goes on while the rank waits, and stops with the process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from comms.telemetry.board import Board
from comms.telemetry.completion import DeviceEnds
from comms.telemetry.cores import waited_for_core_s
from comms.telemetry.layout import AWAITED, ENDED, STARTED, compact_ranks

HEARTBEAT_INTERVAL_S = 0.2

UNRECORDED = 0
"""The token of a collective that has no record."""

Link = tuple[int, int]
"""Sender and receiver, by their ranks in the group."""


class _Line:
    """One communicator, and how many collectives it has had. Used by one thread at a time, as the
    communicator itself is."""

    __slots__ = ("number", "sequence")

    def __init__(self, number: int) -> None:
        self.number = number
        self.sequence = 0


class Recorder:
    """The telemetry of one rank. Any thread may record collectives; steps and phases belong to the
    training thread."""

    _computed_s: float | None
    """Of this step; None before its first wait."""

    def __init__(
        self,
        board: Board,
        *,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
        on_device: bool = False,
        core_waits: Callable[[], float] = waited_for_core_s,
    ) -> None:
        """With `on_device`, what is ended runs on CUDA streams, and is over when they are there.
        `core_waits` counts the seconds in which the calling thread wanted a core and had none."""
        self._board = board
        self._clock = clock
        self._core_waits = core_waits
        self._lock = threading.Lock()
        self._device = DeviceEnds(self._end_now) if on_device else None
        self._lines: dict[tuple[str, str, Link | None], _Line | None] = {}
        self._names: dict[str, int] = {}
        self._generation = self._step = self._round = 0
        self._phase = self._name("starting")
        self._begin_own(clock())
        self._data_s = self._work = 0.0
        self._ended_starved_s: float | None = None
        self._write_state()
        self._board.beat(clock())
        self._closing = threading.Event()
        self._heart = threading.Thread(
            target=self._beat, args=(heartbeat_interval_s,), name="heartbeat", daemon=True
        )
        self._heart.start()

    def enqueue(
        self,
        axis: str,
        kind: str,
        sent_bytes: int,
        group: dist.ProcessGroup,
        *,
        link: Link | None = None,
        started: bool = True,
    ) -> int:
        """Record a collective that is asked for now, on `group` or, with `link`, between two of its
        ranks; a token for what comes of it. Without `started`, another thread will start it."""
        key = (axis, group.group_name, link)
        line = self._lines.get(key) or self._line(key, group)
        if line is None:
            self._board.count_unrecorded()
            return UNRECORDED
        line.sequence += 1
        number = self._names.get(kind)
        if number is None:
            number = self._name(kind)
        now_s = self._clock()
        return self._board.put(
            line.number, line.sequence, number, sent_bytes, self._phase, now_s, started
        )

    def start(self, *tokens: int) -> None:
        """They are handed to the backend."""
        now_s = self._clock()
        for token in tokens:
            self._board.stamp(token, STARTED, now_s)

    def block(self, *tokens: int) -> None:
        """The training thread begins to wait, for these or for something unrecorded."""
        now_s = self._clock()
        if self._computed_s is None:
            self._computed_s = self._own_s(now_s, self._core_waits())
        for token in tokens:
            self._board.stamp(token, AWAITED, now_s)

    def end(self, *tokens: int) -> None:
        """They are over for the host, and so over, unless a device has still to get there."""
        if self._device is not None:
            self._device.expect_here(tokens)
            self._device.poll()
            return
        now_s = self._clock()
        for token in tokens:
            self._board.stamp(token, ENDED, now_s)

    @contextmanager
    def collective(
        self,
        axis: str,
        kind: str,
        sent_bytes: int,
        group: dist.ProcessGroup,
        *,
        beside: bool = False,
    ) -> Iterator[None]:
        """Record what is done inside with tensors in host memory, `beside` the step on another
        thread or as a part of it."""
        token = self.enqueue(axis, kind, sent_bytes, group)
        if beside:
            self._board.stamp(token, AWAITED, self._clock())
        else:
            self.block(token)
        yield
        self._end_now(token)

    def enter(self, phase: str) -> None:
        """Begin a phase of the step, or of the run."""
        number = self._names.get(phase)
        self._phase = self._name(phase) if number is None else number
        self._write_state()

    def begin_step(self, step: int, phase: str) -> None:
        """Own compute of the step is counted from here to the first wait."""
        self._step, self._round = step, 0
        self._data_s = self._work = 0.0
        self._begin_own(self._clock())
        if self._ended_starved_s is None:
            self._ended_starved_s = self._starved_s
        self.enter(phase)

    def begin_work(self, work: float) -> None:
        """The step's batch is there, and own compute is counted from here: what was before it was
        waiting for data. `work` says how much this rank has to do; 0 where that is not known."""
        now_s = self._clock()
        self._data_s = now_s - self._began_s
        self._begin_own(now_s)
        self._work = work
        self._write_state()

    def begin_round(self, number: int) -> None:
        """Say which round of the step begins."""
        self._round = number
        self._write_state()

    def end_step(self, waited_s: float) -> None:
        """Keep the figures of the step that is over, of which the rank waited so long."""
        now_s, starved_s = self._clock(), self._core_waits()
        computed_s = self._computed_s
        before_s, self._ended_starved_s = self._ended_starved_s or 0.0, starved_s
        self._board.add_step(
            self._step,
            ended_s=now_s,
            compute_s=self._own_s(now_s, starved_s) if computed_s is None else computed_s,
            waited_s=waited_s + max(0.0, starved_s - before_s),
            data_s=self._data_s,
            work=self._work,
        )

    def meet_anew(self, generation: int) -> None:
        """Forget all collectives and start to count again, on groups that were made anew. All
        ranks call it between two steps, after their old groups are gone."""
        with self._lock:
            self._lines.clear()
            self._board.forget()
        self._generation = generation
        self._write_state()

    def close(self) -> None:
        """End the heartbeat and let go of the board, whose file stays."""
        self._closing.set()
        self._heart.join()
        self._board.close()

    def _begin_own(self, now_s: float) -> None:
        self._began_s, self._starved_s = now_s, self._core_waits()
        self._computed_s = None

    def _own_s(self, now_s: float, starved_s: float) -> float:
        return max(0.0, now_s - self._began_s - max(0.0, starved_s - self._starved_s))

    def _beat(self, interval_s: float) -> None:
        while not self._closing.wait(interval_s):
            self._board.beat(self._clock())
            if self._device is not None:
                self._device.poll()

    def _end_now(self, token: int) -> None:
        self._board.stamp(token, ENDED, self._clock())

    def _write_state(self) -> None:
        self._board.set_state(
            generation=self._generation,
            phase=self._phase,
            step=self._step,
            round_=self._round,
            since_s=self._clock(),
            work=self._work,
        )

    def _name(self, text: str) -> int:
        with self._lock:
            if text in self._names:
                return self._names[text]
            number = len(self._names)
            # Where there is no room, it is read as a name that is not known.
            self._board.set_name(number, text)
            self._names[text] = number
            return number

    def _line(self, key: tuple[str, str, Link | None], group: dist.ProcessGroup) -> _Line | None:
        """The communicator of a key, named when it is first seen; None where there is no room."""
        if key in self._lines:
            return self._lines[key]
        axis, group_name, link = key
        ranks = dist.get_process_group_ranks(group)
        name = f"{axis}/{group_name}"
        if link is not None:
            ranks = [ranks[place] for place in link]
            name = f"{name}/{ranks[0]}>{ranks[1]}"
        with self._lock:
            if key not in self._lines:
                number = len(self._lines)
                there = self._board.set_communicator(number, name, compact_ranks(ranks))
                self._lines[key] = _Line(number) if there else None
            return self._lines[key]
