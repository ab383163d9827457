"""Whatever a rank counts as sent, over any axis, is recorded alike by all that meet there."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from comms.compression.config import CompressionConfig
from comms.compression.exchange import Exchange
from comms.ledger import Ledger
from comms.outer.config import DilocoConfig
from comms.outer.diloco import StreamingDiloco
from comms.telemetry.board import Board
from comms.telemetry.layout import Sizes
from comms.telemetry.reading import read_board
from comms.telemetry.recorder import Recorder
from comms.telemetry.records import RankReading
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import host_groups
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.widths import Widths
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.pipeline.run import Pipeline
from parallel.pipeline.schedule import PipelineShape
from parallel.pipeline.stages import StageOutput
from parallel.pool import open_pool
from parallel.sequence.stretches import AttentionScheme, token_ranges
from parallel.tensor.axis import TensorAxis
from tests.ranks import run_on_ranks

RANKS = 4
WIDTH = 4


class _Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x.square().sum()


class _Stage(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.last = last

    def forward(self, hidden: Tensor | None, batch: Tensor) -> StageOutput:
        x = torch.tanh(self.linear(batch if hidden is None else hidden))
        loss = x.square().sum() if self.last else None
        return StageOutput(None if self.last else x, loss, 0.0)


def _data(rank: int, ledger: Ledger) -> None:
    """Whole replicas, then sharded ones, two rounds each."""
    for layout in (Layout(replica=4), Layout(replica=2, shard=2)):
        model = _Stack()
        spread = parallelize(
            model,
            parts=ModelParts(blocks=list(model.blocks)),
            meshes=build_mesh(layout, "cpu"),
            config=ParallelConfig(),
            param_dtype=torch.float32,
            compile_blocks=False,
            ledger=ledger,
        )
        gradients = spread.gradients()
        for number in range(2):
            gradients.start_round(last=number == 1)
            model(torch.ones(3, WIDTH)).backward()
        gradients.finish()


def _hierarchy(rank: int, ledger: Ledger) -> None:
    model = _Stack()
    sharding = HierarchicalSharding(
        model,
        blocks=list(model.blocks),
        widths=Widths(weights=1, gradients=2, optimizer=4),
        ledger=ledger,
    )
    sharding.gradients.start_round(last=True)
    model(torch.ones(3, WIDTH)).backward()
    sharding.gradients.finish()
    sharding.publish()


def _sequence(rank: int, ledger: Ledger) -> None:
    schemes = [AttentionScheme(ulysses=2), AttentionScheme(ring=4)]
    pool = open_pool(Layout(replica=4), rank=rank, schemes=schemes, ledger=ledger)
    for scheme in schemes:
        tokens = sum(b - a for a, b in token_ranges(32, scheme, rank % scheme.degree))
        q, k, v = (torch.ones(tokens, 4, 8, requires_grad=True) for _ in range(3))
        pool.attention(scheme)(q, k, v, document_ends=(20, 32), window=None).sum().backward()
    total = pool.sum_over(2)
    assert total is not None
    total(torch.ones(2))


def _experts(rank: int, ledger: Ledger) -> None:
    hosts = host_groups([range(RANKS)], ranks_per_host=2)
    dispatch = ExpertDispatch(dist.group.WORLD, num_experts=8, ledger=ledger, hosts=hosts)
    counts = torch.tensor([rank, 2, 0, 1, 1, 0, 3, 1])
    rows = torch.ones(int(counts.sum()), WIDTH, requires_grad=True)
    dispatch.run(rows, counts, lambda x, own: x * 2).sum().backward()


def _pipeline(rank: int, ledger: Ledger) -> None:
    pipeline = Pipeline(
        [_Stage(rank == RANKS - 1)],
        shape=PipelineShape(schedule="1f1b", ranks=RANKS, stages_per_rank=1),
        group=dist.group.WORLD,
        hidden_shape=lambda batch: tuple(batch.shape),
        ledger=ledger,
    )
    pipeline.run([torch.ones(3, WIDTH)] * 3, divisor=1)


def _tensor(rank: int, ledger: Ledger) -> None:
    axis = TensorAxis(init_device_mesh("cpu", (RANKS,), mesh_dim_names=("tp",)), ledger)
    axis.all_reduce(torch.ones(5))
    axis.finish([axis.start_all_reduce(torch.ones(5)) for _ in range(2)])
    axis.all_gather(torch.ones(5))


def _compressed(rank: int, ledger: Ledger) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("between", "inside"))
    for method, inside in (("quantized", None), ("econtrol", mesh.get_group("inside"))):
        config = CompressionConfig(method=method, ratio=0.3, dense_steps=0)
        group = mesh.get_group("between")
        exchange = Exchange(config, group=group, inside=inside, ledger=ledger)
        with ledger.waiting():
            exchange.start("x", torch.ones(4096), [(32, 32), (3072,)]).wait()
        exchange.close()


def _islands(rank: int, ledger: Ledger) -> None:
    """Two islands of two ranks; of the second kind, one rank of each meets the other island."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("island", "inside"))
    meeting = dist.new_group([0, 2])
    for layout in ("same", "own"):
        group = mesh.get_group("island") if layout == "same" else meeting
        config = DilocoConfig(layout=layout, every=1, overlap_steps=0)
        outer = StreamingDiloco(
            [{"x": nn.Parameter(torch.full((6,), 1.0 + rank // 2))}],
            group=group if layout == "same" or rank % 2 == 0 else None,
            inside=mesh.get_group("inside"),
            config=config,
            ledger=ledger,
        )
        outer.step()
        outer.close()


AXES: tuple[Callable[[int, Ledger], None], ...] = (
    *(_data, _hierarchy, _sequence, _experts, _pipeline, _tensor, _compressed, _islands),
)


def _all_axes(rank: int, folder: Path) -> tuple[dict[str, int], RankReading]:
    path = folder / f"rank-{rank}"
    board = Board.create(path, rank=rank, pid=os.getpid(), sizes=Sizes(slots=4096))
    recorder = Recorder(board)
    ledger = Ledger(recorder=recorder)
    for run in AXES:
        torch.manual_seed(0)
        recorder.enter(run.__name__)
        run(rank, ledger)
    dist.barrier()
    recorder.close()
    return ledger.take()[0], read_board(path)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[tuple[dict[str, int], RankReading]]:
    return run_on_ranks(RANKS, _all_axes, tmp_path_factory.mktemp("boards"))


def test_every_byte_that_is_counted_is_recorded(found):
    for sent, reading in found:
        recorded: Counter[str] = Counter()
        for record in reading.recent:
            recorded[f"{record.communicator.split('/')[0]}/{record.kind}"] += record.sent_bytes
        assert +recorded == +Counter(sent)
        assert len(sent) > 15
        assert reading.unrecorded == 0
        assert {record.phase for record in reading.recent} == {run.__name__ for run in AXES}


def test_every_collective_ends(found):
    for _, reading in found:
        assert reading.pending == ()
        for record in reading.recent:
            assert record.started_s is not None
            assert record.enqueued_s <= record.started_s <= record.ended_s


def test_ranks_that_meet_record_the_same_collectives_in_the_same_order(found):
    readings = [reading for _, reading in found]
    for reading in readings:
        for name, members in reading.members.items():
            assert reading.rank in members
            own = _numbered(reading, name)
            assert [sequence for sequence, _ in own] == list(range(1, len(own) + 1))
            assert reading.last_sequence[name] == len(own)
            for other in members:
                assert _numbered(readings[other], name) == own, (name, reading.rank, other)
                assert readings[other].members[name] == members


def _numbered(reading: RankReading, communicator: str) -> list[tuple[int, str]]:
    """A message is sent by one and received by the other; all else is alike."""
    return [
        (record.sequence, record.kind.replace("receive", "send"))
        for record in reading.recent
        if record.communicator == communicator
    ]
