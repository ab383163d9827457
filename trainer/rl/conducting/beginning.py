"""The prompt ledger with which a run goes on. Pure.

Guarantees, each asserted in tests/trainer/rl/conducting/test_beginning.py:
- where the snapshot reaches the trainer's version, the run goes on from it;
- where it does not, or there is none, no prompt that a step may have trained is trained again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.rl.ledger import FORMAT, PromptLedger
from trainer.rl.ledger_records import merged

STATE_FORMAT = 1


def begin_ledger(
    state: Mapping[str, Any] | None,
    *,
    version: int,
    prompts: int | None,
    prompts_per_step: int,
    lease_s: float,
) -> tuple[PromptLedger, str]:
    """The ledger for trainers that have `version`, and why it does not go on from `state`, if so.

    `state` is a conductor's snapshot.
    """
    reason, first, lease = "", version * prompts_per_step, 0
    if state is not None:
        ledger = state.get("ledger") if state.get("format") == STATE_FORMAT else None
        try:
            if ledger is None:
                found = state.get("format")
                raise ValueError(f"the state has format {found!r}, not {STATE_FORMAT} with prompts")
            return PromptLedger.restore(ledger, step=version, lease_s=lease_s), ""
        except ValueError as error:
            reason = str(error)
            first = max(first, _number(ledger, "first_number"))
            lease = _number(ledger, "next_lease")
    elif version:
        reason = f"there is no state of the prompts beside version {version}"
    if prompts is not None:
        first = min(first, prompts)
    fresh: dict[str, Any] = {
        "format": FORMAT,
        "prompts": prompts,
        "first_number": first,
        "next_lease": lease,
        "next_step": version,
        "committed": version,
        "kept_from": version,
        "settled_below": first,
        "settled": [],
        "records": [],
    }
    return PromptLedger.restore(fresh, step=version, lease_s=lease_s), reason


def merged_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The conductor's snapshot from an earlier one and the changes to it, in their order; all once
    through JSON. Raises LookupError or TypeError where they are none."""
    ledgers = [state["ledger"] for state in states]
    return {**states[-1], "ledger": merged(ledgers[0], ledgers[1:])}


def _number(ledger: Mapping[str, Any] | None, name: str) -> int:
    value = (ledger or {}).get(name, 0)
    return value if isinstance(value, int) else 0
