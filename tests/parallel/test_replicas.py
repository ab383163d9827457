"""The guarantees of parallel/replicas.py, one by one."""

import pytest
import torch

from comms.compression.config import CompressionConfig, StepChoice
from comms.ledger import Ledger
from parallel.apply import ModelParts, parallelize
from parallel.config import ParallelConfig
from parallel.layout import Layout
from parallel.mesh import build_mesh
from parallel.replicas import exchange_lines, open_replicas
from tests.parallel.stack import Stack, rows
from tests.ranks import run_on_ranks

HALF = StepChoice(method="ef", ratio=0.5)
EACH_WAY = (StepChoice(method="none"), HALF, StepChoice(method="quantized", block_format="int8"))


def _steps(rank: int, layout: Layout, on_host: int, dtype: torch.dtype) -> dict:
    """Gradients of a step of two rounds without compression, and bytes of several steps."""
    ledger, model = Ledger(), Stack()
    config = CompressionConfig(method="ef", dense_below=4)
    replicas = open_replicas(config, layout, ranks_per_host=on_host, ledger=ledger)
    spread = parallelize(
        model,
        parts=ModelParts(blocks=list(model.blocks)),
        meshes=build_mesh(layout, "cpu"),
        config=ParallelConfig(bucket_bytes=150),
        param_dtype=dtype,
        compile_blocks=False,
        ledger=ledger,
        replicas=replicas,
    )
    gradients, found = spread.gradients(), {"bytes": [], "inside": replicas.inside}
    for choice in EACH_WAY:
        ledger.take()
        replicas.choose(choice)
        for number in range(2):
            gradients.start_round(last=number == 1)
            model(rows(rank, number)).backward()
        gradients.finish()
        if choice is EACH_WAY[0]:
            grads = {n: p.grad for n, p in model.named_parameters()}
            found["grads"] = {
                n: g.full_tensor() if hasattr(g, "full_tensor") else g.clone()
                for n, g in grads.items()
            }
            found["squares"] = float(gradients.squared_norm())
        replicas.settle(commit=True)
        sent = {key: count for key, count in ledger.take()[0].items() if "shard" not in key}
        inside = sum(count for key, count in sent.items() if "inside" in key)
        found["bytes"].append((sum(sent.values()) - inside, replicas.step_bytes(choice), inside))
        gradients.zero()
    found["waited_s"] = replicas.take_waited_s()
    found["error_norm"] = replicas.exchange.error_norm()
    replicas.exchange.close()
    return found


WAYS = {
    "whole": (Layout(replica=2), 1, torch.float32),
    "sharded": (Layout(replica=2, shard=2), 2, torch.float32),
    "computed in bf16": (Layout(replica=2), 1, torch.bfloat16),
    "two replicas on each of two hosts": (Layout(replica=4), 2, torch.float32),
}


def _body(rank: int, names: list[str]) -> dict[str, dict]:
    return {name: _steps(rank, *WAYS[name]) for name in names}


@pytest.fixture(scope="module")
def results() -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for ranks in (2, 4):
        names = [name for name, (layout, *_) in WAYS.items() if layout.world_size == ranks]
        for answer in run_on_ranks(ranks, _body, names):
            for name, own in answer.items():
                found.setdefault(name, []).append(own)
    return found


@pytest.mark.parametrize("name", list(WAYS))
def test_without_compression_gradients_are_those_of_one_process(results, name):
    reference = Stack()
    for rank in range(len(results[name])):
        for number in range(2):
            reference(rows(rank, number)).backward()
    wanted = {n: p.grad for n, p in reference.named_parameters()}
    bound = 0.1 if WAYS[name][2] == torch.bfloat16 else 1e-5
    for result in results[name]:
        for parameter, grad in result["grads"].items():
            torch.testing.assert_close(grad, wanted[parameter], rtol=bound, atol=bound)
    norm = sum(r["squares"] for r in results[name])
    squares = sum(float(g.square().sum()) for g in wanted.values() if g is not None)
    assert norm == pytest.approx(squares, rel=bound)


@pytest.mark.parametrize("name", list(WAYS))
def test_the_bytes_counted_are_those_foretold(results, name):
    for result in results[name]:
        for sent, foretold, _ in result["bytes"]:
            assert sent == foretold
        dense, half, _ = (sent for sent, *_ in result["bytes"])
        assert 0 < half != dense
        assert result["waited_s"] > 0
        assert result["error_norm"] > 0


def test_replicas_of_one_host_are_summed_before(results):
    for name in WAYS:
        two_level = name.startswith("two replicas")
        for result in results[name]:
            assert result["inside"] == (2 if two_level else 1)
            assert all((inside > 0) == two_level for *_, inside in result["bytes"])


def test_lines_follow_hosts_where_all_have_as_many_replicas():
    assert exchange_lines(Layout(replica=4), 2) == ([(0, 2), (1, 3)], [(0, 1), (2, 3)])
    assert exchange_lines(Layout(replica=4), 1) == ([(0, 1, 2, 3)], [])
    assert exchange_lines(Layout(replica=4), 4) == ([(0, 1, 2, 3)], [])
    assert exchange_lines(Layout(replica=3), 2) == ([(0, 1, 2)], [])
    between, inside = exchange_lines(Layout(replica=4, shard=2), 4)
    assert between == [(0, 4), (2, 6), (1, 5), (3, 7)]
    assert inside == [(0, 2), (4, 6), (1, 3), (5, 7)]
    assert exchange_lines(Layout(pp=2, replica=2), 2) == ([(0, 1), (2, 3)], [])
