"""One worker process as its pool sees it."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from cluster.rewards.child import Child
from cluster.rewards.protocol import decode_object, encode, result_of, shortened
from trainer.errors import BraidError, RecipeError, ResourceError
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import Fault, FaultKind, RewardRequest, RewardResult

# Own package first: a worker is useless without it.
HOME = str(Path(__file__).resolve().parents[2])


class Phase(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


class Worker:
    """Starts at once. Call `look` after each `pump`; nothing here waits or reads the clock."""

    def __init__(
        self, config: RewardConfig, environment: Mapping[str, str], *, now_s: float
    ) -> None:
        self._config = config
        self.child = Child(
            [sys.executable, "-P", "-B", "-m", "cluster.rewards.serve"],
            environment,
            max_out_bytes=config.max_reply_bytes,
        )
        settings = {
            "function": config.function,
            "memory_bytes": config.memory_bytes,
            "parent_pid": os.getpid(),
        }
        self.child.send(encode(settings))
        self.phase = Phase.STARTING
        self.deadline_s = now_s + config.start_limit_s
        self.request: RewardRequest | None = None
        self.calls = 0
        self._given_s = now_s
        self._reply: bytes | None = None
        self._refused: BraidError | None = None

    def give(self, request: RewardRequest, line: bytes, now_s: float) -> None:
        """Hand it a request, encoded as `line`. Only while it is idle."""
        self.request, self.phase = request, Phase.BUSY
        self._given_s, self.deadline_s = now_s, now_s + self._config.time_limit_s
        self.calls += 1
        self.child.send(line)

    def look(self, now_s: float) -> Fault | None:
        """Take in what it has written. A fault: it is of no use any more, whatever its phase."""
        line = self.child.take_line()
        if line is not None and self.phase is Phase.STARTING:
            return self._greet(line)
        if line is not None and self.phase is Phase.BUSY:
            self._reply = line
            return None
        if line is not None or self.child.overflowed:
            return Fault(FaultKind.GARBLED, "the worker wrote more than its reply")
        if self.child.ended:
            return self._ending()
        if self.phase is not Phase.IDLE and now_s >= self.deadline_s:
            limit_s = self.deadline_s - self._given_s
            return Fault(FaultKind.TIMEOUT, f"it took longer than {limit_s:g} s and was ended")
        return None

    def take_result(self, problem: Fault | None, now_s: float) -> RewardResult | None:
        """The result of its request if there is one, or if `problem` means there will be none."""
        if self.request is None or (self._reply is None and problem is None):
            return None
        request, seconds = self.request, now_s - self._given_s
        if self._reply is not None:
            result = result_of(self._reply, request, seconds)
        else:
            result = RewardResult(
                number=request.number, rewards=None, fault=problem, seconds=seconds
            )
        self.request, self._reply, self.phase = None, None, Phase.IDLE
        return result

    def start_error(self, problem: Fault) -> BraidError:
        """Why it does not serve, for the user."""
        return self._refused or RecipeError(
            f"rl.reward.function={self._config.function}: its worker ended at the start "
            f"({problem.reason}); correct the module, or raise rl.reward.memory_bytes"
        )

    def _greet(self, line: bytes) -> Fault | None:
        hello = decode_object(line) or {}
        if not hello.get("filtered") and not self._config.allow_unconfined:
            self._refused = ResourceError(
                "this system cannot confine reward functions (no seccomp filters, or an unknown "
                "processor); run on Linux on x86_64 or aarch64, or set "
                "rl.reward.allow_unconfined: true if the function runs no generated code"
            )
            return Fault(FaultKind.EXITED, "it cannot be confined")
        if not hello.get("ready"):
            error = str(hello.get("error"))
            self._refused = RecipeError(
                f"rl.reward.function={self._config.function} cannot be imported ({error}); correct "
                "the name, or put its folder on PYTHONPATH"
            )
            return Fault(FaultKind.EXITED, error)
        self.phase = Phase.IDLE
        return None

    def _ending(self) -> Fault:
        return fault_of_exit(self.child.return_code or 0, self.child.error_text)


def fault_of_exit(return_code: int, error_text: str) -> Fault:
    """What the end of a process that should not have ended means. Pure."""
    last = shortened(error_text.strip().rsplit("\n", 1)[-1])
    if return_code == -signal.SIGKILL:
        return Fault(FaultKind.MEMORY, "it was killed from outside, most likely for its memory")
    if "MemoryError" in last or "std::bad_alloc" in error_text:
        return Fault(FaultKind.MEMORY, "it ran out of memory")
    if return_code < 0:
        name = signal.Signals(-return_code).name
        return Fault(FaultKind.EXITED, f"it was ended by {name} ({last})")
    if return_code == 1 and ": " in last:
        return Fault(FaultKind.RAISED, last)
    return Fault(FaultKind.EXITED, f"it exited with code {return_code} ({last})")


def import_path(path: Sequence[str]) -> dict[str, str]:
    """The variables with which a worker imports from `path`, with one thread per library."""
    here = os.getcwd()
    entries = [HOME, *(entry or here for entry in path)]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(entries)),
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
