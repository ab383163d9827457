"""The guarantees of trainer/replica_state.py, one by one, and what the vote does to the state."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig
from parallel.config import ParallelConfig
from tests.built import built, take_steps
from tests.jobs import tiny_job
from tests.left import events
from tests.ranks import run_on_ranks
from trainer.config import JobConfig, OptimConfig
from trainer.job import Job
from trainer.replica_state import replica_tensors
from trainer.run_folder import RunFolder

RANKS = 4
ECONTROL = ReplicaConfig(method="econtrol", ratio=0.1, dense_below=100, dense_steps=1)
POWERSGD = ReplicaConfig(method="powersgd", rank=2, dense_below=100, dense_steps=0)
DGC = ReplicaConfig(method="dgc", ratio=0.1, dense_below=100)
SGD = OptimConfig(name="sgd", lr=0.1, weight_decay=0.01)

MOVES = {
    "fewer replicas, sharded": (ECONTROL, (4, 1, 1, 1), (2, 2, 1, 1)),
    "as many replicas, sharded instead of in stages": (POWERSGD, (2, 1, 2, 1), (2, 2, 1, 1)),
    "momentum": (DGC, (2, 2, 1, 1), (4, 1, 1, 1)),
}
"""Method, and the sizes of replica, shard, pp and tp before and after."""


def _job(
    base: JobConfig, name: str, config: ReplicaConfig, sizes: tuple[int, int, int, int]
) -> JobConfig:
    replica, shard, pp, tp = sizes
    return replace(
        base,
        run=replace(base.run, name=name.replace(" ", "-").replace(",", "")),
        parallel=ParallelConfig(replica=replica, shard=shard, pp=pp, tp=tp),
        optim=SGD if config.method == "dgc" else base.optim,
        comms=CommsConfig(replica=config),
    )


def _own(job: Job, rank: int) -> dict[str, torch.Tensor]:
    found = replica_tensors(job.assembly, rank)
    return {
        name: (t.to_local() if isinstance(t, DTensor) else t).clone() for name, t in found.items()
    }


def _sums(job: Job, rank: int) -> dict[str, torch.Tensor]:
    """By kind and parameter, what all replicas hold together, or the first where they are alike."""
    whole = {
        name: t.full_tensor() if isinstance(t, DTensor) else t.clone()
        for name, t in replica_tensors(job.assembly, rank).items()
        if name.startswith("comms.replica.")
    }
    everywhere: list = [None] * RANKS
    dist.all_gather_object(everywhere, whole)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in {k: v for w in everywhere for k, v in sorted(w.items())}.items():
        replica, kind_and_parameter = name.removeprefix("comms.replica.").split(".", 1)
        if kind_and_parameter.startswith("estimate_sum"):
            if replica == "0":
                found[kind_and_parameter] = tensor
        else:
            found[kind_and_parameter] = found.get(kind_and_parameter, 0) + tensor
    return found


def _move(rank: int, base: JobConfig, name: str) -> dict:
    config, before, after = MOVES[name]
    job = _job(base, name, config, before)
    with built(job, rank, RANKS) as (running, _):
        take_steps(running, 3)
        running.saver.finish(3)
        own, sums = _own(running, rank), _sums(running, rank)
    with built(job, rank, RANKS) as (resumed, _):
        again = _own(resumed, rank)
        take_steps(resumed, 1)
    moved = _job(base, name, config, after)
    back = str(RunFolder.of(job.run).checkpoints / "step-00000003")
    with built(replace(moved, run=replace(moved.run, resume=back)), rank, RANKS) as (other, _):
        moved_sums = _sums(other, rank)
        committed = [v.commit for v in take_steps(other, 1)]
    return {
        "own": own,
        "again": again,
        "sums": sums,
        "moved": moved_sums,
        "committed": committed,
        "resets": [reset["cause"] for reset in events(job, "compression_reset")],
    }


def _two_levels(rank: int, base: JobConfig) -> dict:
    """Parts of gradients of two hosts with two replicas each, resumed, and in another layout."""
    job = _job(base, "two levels", ECONTROL, (4, 1, 1, 1))
    with built(job, rank, RANKS, ranks_per_host=2) as (running, reports):
        take_steps(running, 3)
        running.saver.finish(3)
        own, sent = _own(running, rank), reports[-1].bytes_sent
    with built(job, rank, RANKS, ranks_per_host=2) as (resumed, _):
        again = _own(resumed, rank)
    with built(job, rank, RANKS, ranks_per_host=1) as (other, _):
        lost = other.assembly.replicas.exchange.state_dict()
    events = RunFolder.of(job.run).events.read_text()
    return {"own": own, "again": again, "sent": sent, "lost": lost, "events": events}


def _poison(
    rank: int, base: JobConfig, config: ReplicaConfig, sizes: tuple[int, int, int, int]
) -> dict:
    """A step in which one rank's gradient is not finite."""
    job = _job(base, f"poison {config.method}", config, sizes)
    with built(job, rank, RANKS) as (running, reports):
        take_steps(running, 2)
        before = _own(running, rank)
        nan = torch.nan if rank == 1 else 1.0

        def spoil(_module, _arguments, parts) -> None:
            """The loss stays as it is, its gradient does not."""
            parts.loss_sum.register_hook(lambda gradient: gradient * nan)

        handle = running.assembly.weights.model.register_forward_hook(spoil)
        skipped = take_steps(running, 1)
        handle.remove()
        after = _own(running, rank)
        counted = take_steps(running, 1)
        return {
            "before": before,
            "after": after,
            "verdicts": [v.commit for v in (*skipped, *counted)],
            "bad_ranks": skipped[0].bad_ranks,
            "norm": reports[-1].exchanged.error_norm,
        }


def _alike_over_tp(rank: int, base: JobConfig) -> list[torch.Tensor]:
    """What the ranks of `tp` hold alike, after steps in which they compress different tensors."""
    job = _job(base, "tp", replace(ECONTROL, dense_below=10), (2, 1, 1, 2))
    with built(job, rank, RANKS) as (running, reports):
        take_steps(running, 4)
        assert reports[-1].exchanged.error_norm > 0
        return [
            parameter.to_local().detach().clone()
            for parameter in running.assembly.weights.parameters()
            if "tp" not in parameter.device_mesh.mesh_dim_names
        ]


def _body(rank: int, base: JobConfig) -> dict:
    return {
        "moves": {name: _move(rank, base, name) for name in MOVES},
        "two levels": _two_levels(rank, base),
        "poison": {
            config.method: _poison(rank, base, config, sizes)
            for config, sizes in ((ECONTROL, (4, 1, 1, 1)), (DGC, (2, 2, 1, 1)))
        },
        "tp": _alike_over_tp(rank, base),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return run_on_ranks(RANKS, _body, tiny_job(tmp_path_factory.mktemp("replicas")))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(MOVES))
def test_in_the_same_layout_all_of_it_is_as_it_was(results, name):
    for result in results:
        found = result["moves"][name]
        assert found["own"]
        assert _same(found["own"], found["again"])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", list(MOVES))
def test_in_another_layout_sums_stay_and_what_cannot_be_kept_is_said(results, name):
    found = results[0]["moves"][name]
    kinds = {key.split(".")[0] for key in found["sums"]}
    assert (
        kinds
        == {
            "econtrol": {"residual", "estimate", "estimate_sum"},
            "powersgd": {"residual"},
            "dgc": {"residual", "velocity"},
        }[MOVES[name][0].method]
    )
    for key, tensor in found["sums"].items():
        torch.testing.assert_close(found["moved"][key], tensor, rtol=1e-5, atol=1e-7)
    assert found["committed"] == [True]
    dropped = {"powersgd": "factors", "dgc": "dense_velocity"}.get(MOVES[name][0].method)
    assert len(found["resets"]) == (dropped is not None)
    assert all(cause.startswith(dropped) for cause in found["resets"])


@pytest.mark.timeout(240)
def test_parts_of_gradients_are_kept_or_dropped_with_a_message(results):
    for result in results:
        found = result["two levels"]
        assert found["own"]
        assert _same(found["own"], found["again"])
        assert found["sent"]["replica_inside/reduce_scatter"] > 0
        assert found["lost"] == {}
        assert "cannot be cut anew for another layout" in found["events"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["econtrol", "dgc"])
def test_a_gradient_that_is_not_finite_poisons_no_rank(results, method):
    for result in results:
        found = result["poison"][method]
        assert found["verdicts"] == [False, True]
        assert found["bad_ranks"] == ()
        assert _same(found["before"], found["after"])
        assert 0 < found["norm"] < float("inf")


@pytest.mark.timeout(240)
def test_ranks_that_hold_a_tensor_alike_go_on_to(results):
    assert {parameter.ndim for parameter in results[0]["tp"]} == {1, 2}
    for one, other in ((0, 1), (2, 3), (0, 2)):
        for a, b in zip(results[one]["tp"], results[other]["tp"], strict=True):
            assert torch.equal(a, b)
