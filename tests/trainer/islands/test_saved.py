"""The guarantees of trainer/islands/saved.py, one by one."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from comms.outer.config import DilocoConfig
from comms.outer.diloco import StreamingDiloco
from comms.outer.saved import COUNTS, FLIGHT
from tests.ranks import run_on_ranks
from trainer.islands.saved import (
    fresh_state,
    kind_of,
    outer_slots,
    outer_tensors,
    own_name,
    own_prefix,
    passed_over,
)


def _parameters() -> dict[str, nn.Parameter]:
    """One that is cut unevenly over the ranks, and one that all have."""
    generator = torch.Generator().manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    whole = distribute_tensor(torch.randn(5, 3, generator=generator), mesh, [Shard(0)])
    return {"cut": nn.Parameter(whole), "whole": nn.Parameter(torch.randn(4, generator=generator))}


def _round_trip(rank: int) -> dict[str, bool]:
    import torch.distributed as dist

    groups = [dist.new_group([n], backend="gloo") for n in range(2)]
    parameters = _parameters()
    config = DilocoConfig(every=4, overlap_steps=1)
    outer = StreamingDiloco(
        [{n: p} for n, p in parameters.items()], group=groups[rank], config=config
    )
    for _ in range(2):
        for parameter in parameters.values():
            parameter.data.mul_(1.5)
        outer.step()
    state = {name: value.clone() for name, value in outer.state_dict().items()}
    stored = outer_tensors(state, parameters)
    flying = {"cut"}
    slots = outer_slots(parameters, flying)
    for name, tensor in slots.tensors.items():
        tensor.copy_(stored[name])
    again = slots.state(state[COUNTS].tolist(), state[FLIGHT].tolist())
    fresh = fresh_state(parameters, (7, 3, 3))
    outer.load_state_dict(fresh)
    taken = outer.global_parameters()
    outer.close()
    return {
        "names": set(stored) == set(slots.tensors),
        "whole shapes": stored["model.cut"].shape == (5, 3),
        "bitwise": again.keys() == state.keys()
        and all(torch.equal(again[name], state[name]) for name in state),
        "fresh": torch.equal(taken["whole"], parameters["whole"].detach())
        and torch.equal(taken["cut"], parameters["cut"].to_local().detach()),
    }


def test_an_outer_state_is_read_back_bitwise_whatever_cuts_it():
    for found in run_on_ranks(2, _round_trip):
        assert all(found.values()), found


def test_islands_go_on_where_they_were_and_others_from_what_all_agreed_on():
    names = ("model.w", "optim.exp_avg.w")
    own = ("island2/model.w", "island2/optim.exp_avg.w")
    gathered = ("model.w", "island2/optim.exp_avg.w")
    cases = {
        ((), ()): ("alone", names),
        ((0, 1, 2), (0, 1, 2)): ("same", own),
        ((0, 1, 2), (0, 2)): ("same", own),
        ((0, 2), (2,)): ("same", own),
        ((), (0, 1, 2)): ("spread", names),
        ((2, 3), ()): ("gathered", gathered),
        ((2,), (0, 1, 2)): ("gathered", gathered),
    }
    for (stored, now), (kind, wanted) in cases.items():
        assert kind_of(stored, now) == kind
        assert tuple(own_name(name, kind, 2) for name in names) == wanted
        # What replicas had not sent goes with the moments.
        assert own_prefix(kind, 2) == wanted[1].removesuffix(names[1])


def test_only_what_belongs_to_others_is_passed_over():
    assert not any(map(passed_over("alone"), ("model.w", "optim.w", "island0/model.w")))
    assert not any(map(passed_over("spread"), ("model.w", "optim.w")))
    assert all(passed_over(kind)("comms.replica.0.error.w") for kind in ("alone", "spread"))
    same = passed_over("same")
    assert same("model.buffer")
    assert not same("island0/model.buffer")
    assert not same("outer.momentum.w")
    assert same("island1/comms.replica.0.error.w")
    assert not same("island3/model.w")
    assert passed_over("same", left=[3])("island3/model.w")
    assert not same("island1/optim.exp_avg.comms.w")
    gathered = passed_over("gathered")
    assert gathered("island1/model.w")
    assert gathered("outer.momentum.w")
    assert not gathered("model.w")
