import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.ledger import Ledger
from parallel.pipeline.run import Pipeline
from parallel.pipeline.schedule import PipelineShape
from parallel.pipeline.stages import StageOutput
from tests.ranks import run_on_ranks

WIDTH = 6
TOKENS = (5, 3, 8, 4, 7)
"""Microbatches differ in size."""

DIVISOR = 27.0


class Stage(nn.Module):
    """Adds a loss of its own, as a router does; the last stage adds the main one."""

    def __init__(self, number, stages):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 2, bias=False)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
        self.last = number == stages - 1

    def forward(self, hidden, batch, scale=1.0):
        x = batch if hidden is None else hidden
        x = x + torch.tanh(self.linear(self.norm(x))) * scale
        loss = self.router(x).square().sum()
        loss = loss + x.square().sum() if self.last else loss
        return StageOutput(None if self.last else x, loss, float(loss.detach()))


def make_batches(count):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(t, WIDTH, generator=generator) for t in (TOKENS * 2)[:count]]


def one_process(stages, count, scale=1.0):
    """All stages one after the other, microbatch by microbatch."""
    modules = [Stage(number, stages) for number in range(stages)]
    reports = [[] for _ in modules]
    for batch in make_batches(count):
        hidden, total = None, 0.0
        for module, found in zip(modules, reports, strict=True):
            hidden, loss, report = module(hidden, batch, scale)
            total = total + loss / DIVISOR
            found.append(report)
        total.backward()
    return reports, gradients_of(dict(enumerate(modules)))


def gradients_of(stages):
    return {f"{i}.{n}": p.grad.clone() for i, m in stages.items() for n, p in m.named_parameters()}


def build(shape, rank, **options):
    stages = {number: Stage(number, shape.stages) for number in shape.stages_of(rank)}
    options = {"hidden_shape": lambda batch: tuple(batch.shape), **options}
    return stages, Pipeline(list(stages.values()), shape=shape, group=dist.group.WORLD, **options)


def train(rank, shape, count, options):
    """One step on one rank, and all that is asked about it."""
    ledger, backwards = Ledger(), []
    stages, pipeline = build(
        shape,
        rank,
        ledger=ledger,
        start_backward=lambda stage, last: backwards.append((stage, last)),
    )
    return {
        "reports": pipeline.run(make_batches(count), divisor=DIVISOR, **options),
        "gradients": gradients_of(stages),
        "bytes": ledger.take()[0],
        "backwards": backwards,
        "evaluated": pipeline.evaluate(make_batches(count), arguments=options.get("arguments")),
        "evaluated_bytes": ledger.take()[0],
    }


def train_all(rank, cases):
    return [train(rank, *case) for case in cases]


def shape_of(schedule, ranks, stages_per_rank=1):
    return PipelineShape(schedule=schedule, ranks=ranks, stages_per_rank=stages_per_rank)


SCALES = [0.5, 1.0, 0.25, 2.0, 1.5]


def cases_of(ranks):
    return [
        (shape_of("gpipe", ranks), 5, {}),
        (shape_of("1f1b", ranks), 5, {}),
        (shape_of("1f1b", ranks), 1, {}),
        (shape_of("interleaved", ranks, 2), 5, {}),
        (shape_of("interleaved", ranks, 3), 2, {}),
        (shape_of("zero_bubble", ranks, 2), 5, {}),
        (shape_of("zero_bubble", ranks, 2), 2, {"whole_backward": True}),
    ]


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{}ranks".format)
def steps(request):
    """Every case of a number of ranks: its shape, its microbatches, and what each rank found."""
    cases = cases_of(request.param)
    results = run_on_ranks(request.param, train_all, cases)
    return [(*case[:2], [found[i] for found in results]) for i, case in enumerate(cases)]


def test_losses_and_gradients_are_those_of_one_process_bitwise(steps):
    for shape, count, ranks in steps:
        reports, gradients = one_process(shape.stages, count)
        found = {}
        for rank, result in enumerate(ranks):
            assert result["reports"] == [reports[stage] for stage in shape.stages_of(rank)]
            found.update(result["gradients"])
        assert found.keys() == gradients.keys()
        assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_evaluation_gives_the_same_losses(steps):
    for _, _, ranks in steps:
        assert all(result["evaluated"] == result["reports"] for result in ranks)


def test_every_byte_sent_is_counted(steps):
    for shape, count, ranks in steps:
        size = sum(len(batch) for batch in make_batches(count)) * WIDTH * 4
        for rank, result in enumerate(ranks):
            onward = sum(leaves(shape, rank, stage, stage + 1) for stage in shape.stages_of(rank))
            back = sum(leaves(shape, rank, stage, stage - 1) for stage in shape.stages_of(rank))
            assert result["bytes"].get("pp/send", 0) == size * (onward + back)
            assert result["evaluated_bytes"].get("pp/send", 0) == size * onward


def leaves(shape, rank, stage, other):
    """Whether what `stage` gives to `other` leaves its rank."""
    return 0 <= other < shape.stages and shape.rank_of(other) != rank


def test_each_stage_is_told_of_its_last_backward(steps):
    for shape, count, ranks in steps:
        for result in ranks:
            for stage in range(shape.stages_per_rank):
                told = [last for number, last in result["backwards"] if number == stage]
                assert told == [False] * (count - 1) + [True]


def train_with_arguments(rank):
    shape = shape_of("interleaved", 2, 2)
    arguments = [{"scale": scale} for scale in SCALES]
    return train(rank, shape, 5, {"arguments": arguments})


def test_stages_get_the_keyword_arguments_of_their_microbatch():
    modules = [Stage(number, 4) for number in range(4)]
    wanted = [[] for _ in modules]
    for batch, scale in zip(make_batches(5), SCALES, strict=True):
        hidden = None
        for module, found in zip(modules, wanted, strict=True):
            hidden, _, report = module(hidden, batch, scale)
            found.append(report)
    for rank, result in enumerate(run_on_ranks(2, train_with_arguments)):
        assert result["reports"] == [wanted[rank], wanted[rank + 2]]
        assert result["evaluated"] == result["reports"]


def live_outputs(rank):
    """Most outputs of the first of two stages that are in memory at a time."""
    shape = shape_of("1f1b", 2)
    stages, pipeline = build(shape, rank)
    alive, counts = [], []

    def count(module, arguments, output):
        alive[:] = [ref for ref in alive if ref() is not None]
        if output.hidden is not None:
            alive.append(weakref.ref(output.hidden))
        counts.append(len(alive))

    for stage in stages.values():
        stage.register_forward_hook(count)
    pipeline.run([TOKEN] * 24, divisor=1.0)
    return max(counts)


def test_activations_are_freed_when_they_have_left():
    # Two microbatches are under way at a time; a third may not have left the process yet.
    assert run_on_ranks(2, live_outputs)[0] <= 4


def mistakes(rank):
    shape = shape_of("interleaved", 1, 2)
    found = []
    for attempt in (
        lambda: build(shape, 0)[1].run([], divisor=1.0),
        lambda: build(shape, 0, hidden_shape=lambda batch: (1, 2))[1].run([TOKEN], divisor=1.0),
        lambda: build(shape, 0, dtype=torch.bfloat16)[1].run([TOKEN], divisor=1.0),
        lambda: build(shape_of("1f1b", 4), 0),
        lambda: Pipeline([], shape=shape, group=dist.group.WORLD, hidden_shape=len),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            attempt()
        found.append(str(error.value))
    return found


TOKEN = torch.ones(1, WIDTH)


def test_mistakes_are_named():
    (found,) = run_on_ranks(1, mistakes)
    assert "at least one microbatch" in found[0]
    assert "gave ((1, 6), torch.float32) for microbatch 0" in found[1]
    assert "expects ((1, 2), torch.float32)" in found[1]
    assert "expects ((1, 6), torch.bfloat16)" in found[2]
    assert "needs a group of as many, got 1" in found[3]
    assert "holds stages (0, 1), but got 0 modules" in found[4]
