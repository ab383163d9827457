"""The guarantees of comms/outer/diloco.py and flight.py, one by one, on real ranks."""

import copy
import os
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

from comms.outer.config import DilocoConfig
from comms.outer.diloco import StreamingDiloco
from tests.comms.outer.islands import PLAIN, STREAM, Island, batch_of, make_model
from tests.ranks import run_on_ranks


def _limits(rank: int) -> dict[str, float]:
    """Largest distance to data parallelism, and to averaging every three steps."""
    found = {}
    for every in (1, 3):
        island = Island(rank, {"every": every, **PLAIN}, fragments=1)
        twin = make_model()
        inner = torch.optim.SGD(twin.parameters(), lr=0.05)
        for step in range(12):
            island.step()
            inputs, targets = batch_of(rank, step)
            nn.functional.mse_loss(twin(inputs), targets).backward()
            if every == 1:
                for p in twin.parameters():
                    dist.all_reduce(p.grad, op=dist.ReduceOp.SUM)
                    p.grad /= 2
            inner.step()
            inner.zero_grad()
            if every > 1 and step % every == every - 1:
                for p in twin.parameters():
                    dist.all_reduce(p.detach())
                    p.data /= 2
        pairs = zip(island.parameters(), twin.parameters(), strict=True)
        found[f"every {every}"] = max((a - b).detach().abs().max().item() for a, b in pairs)
        found["largest"] = max(p.detach().abs().max().item() for p in twin.parameters())
        island.outer.close()
    return found


def _streaming(rank: int) -> dict[str, object]:
    """Twenty steps of islands whose speed differs, and what they then share."""
    own = ({}, {"every": 3, "overlap_steps": 0})[rank]
    island = Island(rank, {**STREAM, **own})
    island.ledger.take()
    merged = []
    threads = set()
    for _ in range(27 if rank == 0 else 9):
        merged.append(island.step())
        threads |= {thread.name for thread in threading.enumerate()}
    last = island.outer.finish()
    sent, _ = island.ledger.take()
    sizes = island.outer.message_bytes()
    island.outer.close()
    return {
        "globals": island.outer.global_parameters(),
        "momentum": {n: v for n, v in island.outer.state_dict().items() if n.endswith("momentum")},
        "fragments": [m.fragment for m in [*merged, last] if m is not None],
        "at": [step for step, m in enumerate(merged, 1) if m is not None],
        "sent": sent,
        "sizes": sizes,
        "outer threads": sum(name.startswith("outer") for name in threads),
    }


def _resumed(rank: int) -> bool:
    """Whether a run that stops in mid-exchange ends as one that goes on."""
    whole = Island(rank, STREAM)
    for _ in range(4):
        whole.step()
    state = {name: value.clone() for name, value in whole.outer.state_dict().items()}
    weights = copy.deepcopy(whole.model.state_dict())
    assert "outer/flight" in state
    again = Island(rank, STREAM, model=make_model(seed=7))
    again.model.load_state_dict(weights)
    again.outer.load_state_dict(state)
    again.steps = 4
    for _ in range(10):
        whole.step()
        again.step()
    same = all(map(torch.equal, whole.parameters(), again.parameters()))
    whole.outer.close()
    again.outer.close()
    return same


def _poisoned(rank: int) -> dict[str, object]:
    """Rank 1's first fragment is not finite when it leaves."""
    island = Island(rank, {"every": 9, **PLAIN, "outer_momentum": 0.9})
    before = island.outer.global_parameters()
    island.step()
    island.step()
    island.local_step()
    gradient = {n: before[n] - p.detach() for n, p in island.model.named_parameters()}
    if rank == 1:
        island.model[0].weight.data[0, 0] = torch.nan
    merged = island.outer.step()
    after = island.outer.global_parameters()
    name = "0.weight"
    expected = before[name] - 1.9 * gradient[name]
    island.outer.close()
    return {
        "finite": merged.finite,
        "of rank 0 alone": rank == 1 or torch.allclose(after[name], expected, rtol=1e-5, atol=1e-6),
        "local is global": torch.equal(island.model[0].weight.detach(), after[name]),
        "globals": after,
    }


def _both(rank: int) -> dict[str, object]:
    return {
        "limits": _limits(rank),
        "streaming": _streaming(rank),
        "resumed": _resumed(rank),
        "poisoned": _poisoned(rank),
        "differing": _differing(rank),
    }


@pytest.fixture(scope="module")
def found() -> list[dict[str, object]]:
    return run_on_ranks(2, _both)


def test_the_limits_are_data_parallelism_and_local_sgd(found):
    for one in found:
        limits = one["limits"]
        bound = 12 * 2**-22 * limits["largest"]
        assert limits["every 1"] <= bound
        assert limits["every 3"] <= bound


def test_islands_of_different_speed_share_global_state_bitwise(found):
    first, second = (one["streaming"] for one in found)
    for kind in ("globals", "momentum"):
        assert first[kind].keys() == second[kind].keys()
        assert all(torch.equal(first[kind][n], second[kind][n]) for n in first[kind])
    assert first["fragments"] == second["fragments"] == [0, 1, 2] * 3
    assert first["at"] == [5, 8, 11, 14, 17, 20, 23, 26]
    assert second["at"] == list(range(1, 10))


def test_the_bytes_counted_are_those_of_the_messages(found):
    for one in found:
        streaming = one["streaming"]
        assert streaming["sent"] == {"island/all_gather": 3 * sum(streaming["sizes"])}


def test_fragments_are_carried_on_one_thread(found):
    assert [one["streaming"]["outer threads"] for one in found] == [1, 1]


def test_a_run_resumed_in_mid_exchange_equals_one_that_went_on(found):
    assert [one["resumed"] for one in found] == [True, True]


def test_an_outer_gradient_that_is_not_finite_poisons_nobody(found):
    for one in found:
        poisoned = one["poisoned"]
        assert poisoned["finite"] == (True, False)
        assert poisoned["of rank 0 alone"]
        assert poisoned["local is global"]
        assert all(value.isfinite().all() for value in poisoned["globals"].values())


def _lost(rank: int) -> dict[str, object]:
    """Rank 2 joins two islands, announces that it leaves, joins again, and dies."""
    found: dict[str, object] = {}
    outer = {**STREAM, "overlap_steps": 0}
    memberships = [[0, 1], [0, 1, 2], [0, 1], [0, 1, 2], [0, 1]]
    made = [dist.new_group(ranks, backend="gloo") for ranks in memberships]
    if rank < 2:
        run = Island(rank, outer, group=made[0])
        for _ in range(6):
            run.step()
        replaced = run.outer.regroup(made[1])
        found["unchanged"] = replaced == ()
    else:
        run = Island(rank, outer, model=make_model(seed=5), group=made[1])
        taken = dict(run.model.named_parameters())
        shared = run.outer.global_parameters()
        found["taken over"] = all(torch.equal(taken[n].detach(), shared[n]) for n in shared)
    found["first"] = run.outer.global_parameters()
    for _ in range(6):
        merged = run.step()
    found["next fragment"] = merged.fragment
    if rank == 2:
        run.outer.announce_leave()
    for _ in range(3):
        merged = run.step()
    found["leaving"] = merged.leaving
    if rank < 2:
        run.outer.regroup(made[2])
        for _ in range(3):
            run.step()
        run.outer.regroup(made[3])
    else:
        run.outer.regroup(made[3])
    run.local_step()
    if rank == 2:
        os._exit(0)
    before = {name: value.clone() for name, value in run.outer.state_dict().items()}
    counts = before.pop("outer/counts")
    run.outer.step()
    run.step()
    with pytest.raises(RuntimeError, match=r"was dropped: .* call regroup"):
        run.step()
    after = run.outer.state_dict()
    found["kept"] = all(torch.equal(after[name], before[name]) for name in before)
    found["committed"] = int(counts[2]), int(after["outer/counts"][2])
    run.outer.regroup(made[4])
    for _ in range(9):
        run.step()
    found["last"] = run.outer.global_parameters()
    run.outer.close()
    # The default group still holds the rank that is gone, and would wait for it.
    return found


def test_islands_join_leave_and_die():
    first, second, third = run_on_ranks(3, _lost)
    # It ended itself.
    assert third is None
    for one in (first, second):
        assert one["unchanged"]
        assert one["next fragment"] == 0
        assert one["leaving"] == (2,)
        assert one["kept"]
        assert one["committed"] == (6, 6)
    for name in first["last"]:
        assert torch.equal(first["last"][name], second["last"][name])


def _differing(rank: int) -> tuple[str, str]:
    refused = []
    for change in ({"outer_lr": 0.5 + rank}, {"wire": ("int8", "fp32")[rank]}):
        with pytest.raises(ValueError, match="Islands differ") as error:
            Island(rank, {**STREAM, **change})
        refused.append(str(error.value))
    return refused[0], refused[1]


def test_islands_that_differ_are_refused_on_all_ranks(found):
    for one in found:
        assert all("must be equal" in text for text in one["differing"])


def test_fragments_that_hold_nothing_or_the_same_are_refused():
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"Fragments \[1\] hold no parameter"):
        StreamingDiloco([{"a": weight}, {}], group=None, config=DilocoConfig(every=20))
    with pytest.raises(ValueError, match="several fragments"):
        StreamingDiloco([{"a": weight}, {"a": weight}], group=None, config=DilocoConfig(every=20))


def _on_gpu(rank: int) -> dict[str, bool]:
    """Nine steps of one island, here and on a GPU; the outer state rests in host memory."""
    ends = []
    for device in ("cpu", "cuda"):
        island = Island(rank, {**STREAM, "wire": "fp32"}, model=make_model().to(device))
        for step in range(9):
            inputs, targets = (tensor.to(device) for tensor in batch_of(0, step))
            nn.functional.mse_loss(island.model(inputs), targets).backward()
            island.inner.step()
            island.inner.zero_grad()
            island.outer.step()
        island.outer.finish()
        ends.append(island.outer.global_parameters())
        island.outer.close()
    here, there = ends
    return {
        "resting": all(value.device.type == "cpu" for value in there.values()),
        "equal": all(torch.allclose(here[n], there[n], rtol=1e-3, atol=1e-5) for n in here),
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_outer_state_rests_in_host_memory():
    assert run_on_ranks(1, _on_gpu)[0] == {"resting": True, "equal": True}
