"""The guarantee of trainer/islands/reports.py."""

import json
from dataclasses import fields

from parallel.layout import Layout
from trainer.exchanged import Exchanged
from trainer.islands.reports import report_of, report_record
from trainer.metrics import IslandFigures, StepReport
from trainer.movement import ActivationMovement, Movement
from trainer.planner.plan import OuterPlan, Round, SequenceGroup, StepPlan, Terms

GROUP = SequenceGroup(first_rank=0, size=2, sequences=(0, 1))
PLAN = StepPlan(
    step=3,
    layout=Layout(island=2, shard=2),
    rounds=(Round(groups=(GROUP,)),),
    outer=OuterPlan(sends=1),
    predicted=Terms(compute_s=0.5),
)
EXTRAS = {
    "movement": Movement(moved_bytes={"fetched": 3}, update_s=0.1, stall_s=0.0, device_share=0.5),
    "activations": ActivationMovement(
        stored_bytes=1,
        fetched_bytes=2,
        recomputed_bytes=3,
        saved_bytes=4,
        transfer_s=0.5,
        exposed_s=0.25,
    ),
    "exchanged": Exchanged(sent_bytes=1, dense_bytes=9, waited_s=0.0, error_norm=0.3),
    "islands": IslandFigures(loss_gap=0.0, wait_s=0.1, sent_bytes=7),
}


def _report(**changes) -> StepReport:
    numbers = {f.name: 1.0 for f in fields(StepReport) if f.type in (float, "float")}
    counts = {f.name: 2 for f in fields(StepReport) if f.type in (int, "int")}
    rest = {"skipped": False, "plan": PLAN, "measured": Terms(update_s=1.0), "bytes_sent": {"a": 1}}
    return StepReport(**{**numbers, **counts, **rest, **changes})


def test_what_is_read_back_is_what_was_written():
    for report in (_report(), _report(**EXTRAS)):
        assert report_of(json.loads(json.dumps(report_record(report)))) == report
