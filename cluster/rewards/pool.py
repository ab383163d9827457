"""Reward functions in confined worker processes.

Guarantees, each asserted in tests/cluster/rewards/test_pool.py:
- every request gets exactly one result: finite rewards, one per sample, or a fault with its reason;
- a function that raises, hangs, returns NaN, too few or no numbers, exits, or takes all memory
  costs its own prompt only: its worker is replaced and the others' results are as ever;
- a function that cannot be imported, and a system that cannot confine it, are errors at the start.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from cluster.rewards.child import pump
from cluster.rewards.protocol import encode_request
from cluster.rewards.worker import Phase, Worker, import_path
from trainer.errors import InfrastructureError
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import Fault, RewardRequest, RewardResult

MAX_FAILED_STARTS = 3


class RewardPool:
    """Hand requests in with `submit`, take results out with `poll`; or both at once with `score`.

    Workers end with the thread that made them, so that thread must stay. Use it as a context, or
    call `close`.
    """

    def __init__(
        self,
        config: RewardConfig,
        *,
        path: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path` is where workers import from (here: sys.path), `environment` all the variables
        they see besides what Python needs.

        Raises RecipeError where the function cannot be imported, ResourceError where this system
        cannot confine a process.
        """
        self._config = config
        self._clock = clock
        self._environment = import_path(sys.path if path is None else path) | dict(
            environment or {}
        )
        self._queue: deque[tuple[RewardRequest, bytes]] = deque()
        self._failed_starts = 0
        self._workers = [self._start() for _ in range(config.workers)]
        try:
            self._await_first()
        except BaseException:
            self.close()
            raise

    def submit(self, request: RewardRequest) -> None:
        """Queue a request. Never waits. Raises TypeError where its reference is no JSON."""
        self._queue.append((request, encode_request(request)))
        self._hand_out()

    @property
    def under_way(self) -> int:
        """Requests whose result has not been taken."""
        return len(self._queue) + sum(worker.request is not None for worker in self._workers)

    def poll(self, timeout_s: float) -> list[RewardResult]:
        """Results that are there, waiting up to `timeout_s` for the first. In no order.

        Raises InfrastructureError where workers cannot be started any more.
        """
        until_s = self._clock() + timeout_s
        while True:
            results = self._collect()
            # After it: what became idle just now would otherwise wait with nothing to wait for.
            self._hand_out()
            now_s = self._clock()
            if results or now_s >= until_s or not self.under_way:
                return results
            deadlines = [w.deadline_s for w in self._workers if w.phase is not Phase.IDLE]
            next_s = min([until_s, *deadlines])
            pump([worker.child for worker in self._workers], next_s - now_s)

    def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """The results of `requests`, in their order. Nothing else may be under way."""
        if self.under_way:
            raise ValueError(f"{self.under_way} requests are under way; take them with poll first")
        for request in requests:
            self.submit(request)
        found: dict[int, RewardResult] = {}
        while self.under_way:
            results = self.poll(self._config.time_limit_s + self._config.start_limit_s)
            found |= {result.number: result for result in results}
        return [found[request.number] for request in requests]

    def close(self) -> None:
        """End the workers. What is under way gets no result."""
        self._queue.clear()
        for worker in self._workers:
            worker.child.kill()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Worker:
        return Worker(self._config, self._environment, now_s=self._clock())

    def _await_first(self) -> None:
        """Wait until one worker serves, so that a function that cannot is known at once."""
        while not any(worker.phase is Phase.IDLE for worker in self._workers):
            pump([worker.child for worker in self._workers], 0.1)
            for worker in self._workers:
                problem = worker.look(self._clock())
                if problem is not None:
                    raise worker.start_error(problem)

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._queue and worker.phase is Phase.IDLE:
                worker.give(*self._queue.popleft(), self._clock())

    def _collect(self) -> list[RewardResult]:
        results = []
        for place, worker in enumerate(self._workers):
            was_starting = worker.phase is Phase.STARTING
            problem = worker.look(self._clock())
            if problem is not None:
                if was_starting:
                    self._count_failed_start(worker, problem)
                self._workers[place] = self._replace(worker)
            elif was_starting and worker.phase is Phase.IDLE:
                self._failed_starts = 0
            result = worker.take_result(problem, self._clock())
            if result is not None:
                results.append(result)
                if problem is None and worker.calls >= self._config.calls_per_worker:
                    self._workers[place] = self._replace(worker)
        return results

    def _replace(self, worker: Worker) -> Worker:
        worker.child.kill()
        return self._start()

    def _count_failed_start(self, worker: Worker, problem: Fault) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise InfrastructureError(
                f"reward workers for {self._config.function} served and now fail to start, "
                f"{self._failed_starts} times in a row ({problem.reason}); look at the host's "
                "memory, or raise rl.reward.memory_bytes"
            )
