"""Lines of JSON between the pool and its workers. Pure: no processes here.

Guarantees, each asserted in tests/cluster/rewards/test_protocol.py:
- whatever bytes a worker sends, the result is typed: as many finite numbers as there are samples,
  or a fault that says what was wrong with which;
- a reply to another request is never taken for this one's.
"""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from trainer.rl.rewards.outcome import Fault, FaultKind, RewardRequest, RewardResult

MAX_REASON_CHARACTERS = 500


def encode_request(request: RewardRequest) -> bytes:
    """The line a worker reads."""
    return encode(
        {
            "number": request.number,
            "prompt": request.prompt,
            "completions": list(request.completions),
            "reference": dict(request.reference),
        }
    )


def encode(message: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message).encode() + b"\n"


def decode_object(line: bytes) -> dict[str, Any] | None:
    """The object on a line, or None."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def result_of(line: bytes, request: RewardRequest, seconds: float) -> RewardResult:
    """What a worker's line says about the request it was given."""
    reply = decode_object(line)
    if reply is None or reply.get("number") != request.number:
        text = line[:80].decode(errors="replace")
        fault: Fault | None = Fault(FaultKind.GARBLED, f"the worker answered {text!r}")
    elif "rewards" in reply:
        fault = _fault_of(reply["rewards"], len(request.completions))
    else:
        memory = reply.get("kind") == FaultKind.MEMORY
        kind = FaultKind.MEMORY if memory else FaultKind.RAISED
        fault = Fault(kind, shortened(str(reply.get("reason", "no reason given"))))
    if fault is None and reply is not None:
        rewards = tuple(float(reward) for reward in reply["rewards"])
        return RewardResult(number=request.number, rewards=rewards, seconds=seconds)
    return RewardResult(number=request.number, rewards=None, fault=fault, seconds=seconds)


def shortened(text: str) -> str:
    """The end of a long text, where tracebacks say what happened."""
    text = text.strip()
    return text if len(text) <= MAX_REASON_CHARACTERS else "…" + text[-MAX_REASON_CHARACTERS:]


def _fault_of(rewards: Any, samples: int) -> Fault | None:
    if not isinstance(rewards, list):
        return Fault(FaultKind.NO_NUMBER, f"it returned {type(rewards).__name__}, not a list")
    if len(rewards) != samples:
        return Fault(
            FaultKind.WRONG_COUNT, f"it returned {len(rewards)} rewards for {samples} samples"
        )
    for place, reward in enumerate(rewards):
        if not isinstance(reward, int | float):
            return Fault(FaultKind.NO_NUMBER, f"reward {place} is {shortened(repr(reward))}")
        if not _is_finite(reward):
            return Fault(FaultKind.NOT_FINITE, f"reward {place} is {_shown(reward)}")
    return None


def _is_finite(reward: int | float) -> bool:
    try:
        return isfinite(reward)
    except OverflowError:
        return False


def _shown(reward: int | float) -> str:
    return str(reward) if isinstance(reward, float) else "an integer beyond any float"
