"""Pure: step plans as JSON, so that rank 0 can hand its plan to the others.

Guarantee, asserted in tests/trainer/planner/test_fixed.py: decoding what was encoded gives an
equal plan.
"""

import json
from dataclasses import asdict
from typing import Any

from parallel.layout import Layout
from parallel.sequence.stretches import AttentionScheme
from trainer.planner.plan import OuterPlan, Round, SequenceGroup, StepPlan, Terms


def encode_plan(plan: StepPlan) -> bytes:
    """The plan as UTF-8 JSON."""
    return json.dumps(asdict(plan)).encode()


def decode_plan(payload: bytes) -> StepPlan:
    """The plan that was encoded."""
    fields: dict[str, Any] = json.loads(payload)
    return StepPlan(
        **{
            **fields,
            "layout": Layout(**fields["layout"]),
            "rounds": tuple(_round(r) for r in fields["rounds"]),
            "ring_hosts": tuple(fields["ring_hosts"]),
            "host_groups": tuple(tuple(group) for group in fields["host_groups"]),
            "outer": None if fields["outer"] is None else OuterPlan(**fields["outer"]),
            "predicted": Terms(**fields["predicted"]),
            "reasons": tuple(fields["reasons"]),
        }
    )


def _round(fields: dict[str, Any]) -> Round:
    return Round(
        groups=tuple(
            SequenceGroup(
                first_rank=group["first_rank"],
                size=group["size"],
                sequences=tuple(group["sequences"]),
                attention=AttentionScheme(**group["attention"]),
            )
            for group in fields["groups"]
        )
    )
