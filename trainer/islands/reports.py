"""Step reports as JSON: those that wait for news of other islands are kept with the state.

Guarantee, asserted in tests/trainer/islands/test_reports.py: what is read back equals what was
written.
"""

import json
from dataclasses import asdict
from typing import Any

from trainer.exchanged import Exchanged
from trainer.metrics import IslandFigures, StepReport
from trainer.movement import ActivationMovement, Movement
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.plan import Terms

_OPTIONAL = {
    "movement": Movement,
    "activations": ActivationMovement,
    "exchanged": Exchanged,
    "islands": IslandFigures,
}


def report_record(report: StepReport) -> dict[str, Any]:
    """The report as a JSON object."""
    fields = {**vars(report), "plan": json.loads(encode_plan(report.plan))}
    fields["measured"] = asdict(report.measured)
    for name in _OPTIONAL:
        fields[name] = None if fields[name] is None else asdict(fields[name])
    return fields


def report_of(record: dict[str, Any]) -> StepReport:
    """The report that was written."""
    fields = dict(record)
    for name, kind in _OPTIONAL.items():
        fields[name] = None if fields[name] is None else kind(**fields[name])
    plan = decode_plan(json.dumps(fields["plan"]).encode())
    return StepReport(**{**fields, "plan": plan, "measured": Terms(**fields["measured"])})
