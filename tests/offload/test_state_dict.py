import pytest
import torch
from torch import nn

from offload.state_dict import import_state, refuse_variants, require_same_groups
from offload.states import SubgroupState
from offload.subgroups import cut_subgroups
from offload.weights import Weights


def setting(weight):
    weights = Weights([nn.Parameter(weight)])
    (subgroup,) = cut_subgroups([[(0, weight.numel())]], 1024)
    state = SubgroupState(
        exp_avg=torch.zeros(1024), exp_avg_sq=torch.zeros(1024), master=torch.zeros(1024)
    )
    return weights, subgroup, state


def test_a_master_that_does_not_round_to_the_weight_is_outdated():
    weight = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    weights, subgroup, state = setting(weight)
    moments = {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    import_state(weights, subgroup, state, [{**moments, "master": torch.tensor([1.001, 3.0])}])
    assert state.master[:2].tolist() == pytest.approx([1.001, 2.0])
    assert state.exp_avg[:3].tolist() == [1.0, 1.0, 0.0]


def test_an_entry_of_another_size_is_refused():
    weights, subgroup, state = setting(torch.zeros(4))
    entry = {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 has 3 elements .* has 4"):
        import_state(weights, subgroup, state, [entry])


def test_other_arithmetic_and_other_groups_are_refused():
    with pytest.raises(ValueError, match="maximize=True"):
        refuse_variants([{"maximize": True}])
    with pytest.raises(ValueError, match=r"groups of \[1, 2\] parameters, this optimizer of \[3\]"):
        require_same_groups([{"params": [0, 1, 2]}], [{"params": [0]}, {"params": [1, 2]}])
