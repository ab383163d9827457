import torch
from torch import nn

from comms.buckets import GradientBuckets
from comms.ledger import Ledger
from parallel.pipeline.stages import StagedGradients


class Recorded:
    """Gradients that note what is asked of them."""

    def __init__(self, name, events):
        self._name = name
        self._events = events

    def start_round(self, *, last):
        self._events.append((self._name, "last" if last else "round"))

    def finish(self):
        self._events.append((self._name, "finish"))


def test_exchanges_of_one_stage_are_over_before_those_of_the_next_begin():
    events = []
    staged = StagedGradients([Recorded("a", events), Recorded("b", events)])
    staged.start_backward(1, False)
    staged.start_backward(1, True)
    staged.start_backward(0, False)
    staged.start_backward(0, True)
    staged.finish()
    staged.finish()
    assert events == [
        ("b", "round"),
        ("b", "last"),
        ("a", "round"),
        ("b", "finish"),
        ("a", "last"),
        ("a", "finish"),
    ]


def buckets(module):
    return GradientBuckets(list(module.parameters()), group=None, bucket_bytes=100, ledger=Ledger())


def test_stages_are_measured_and_zeroed_together():
    stages = [nn.Linear(3, 3), nn.Linear(3, 2)]
    staged = StagedGradients([buckets(stage) for stage in stages])
    for number, stage in enumerate(stages):
        staged.start_backward(number, True)
        stage(torch.ones(4, 3)).square().sum().backward()
    staged.finish()
    gradients = [p.grad for stage in stages for p in stage.parameters()]
    squared = sum(float(g.square().sum()) for g in gradients)
    torch.testing.assert_close(float(staged.squared_norm()), squared, rtol=1e-6, atol=0)
    staged.zero()
    assert float(staged.squared_norm()) == 0.0


def test_rounds_without_a_pipeline_reach_every_stage():
    events = []
    staged = StagedGradients([Recorded("a", events), Recorded("b", events)])
    staged.start_round(last=True)
    staged.finish()
    assert events == [("a", "last"), ("b", "last"), ("a", "finish"), ("b", "finish")]
