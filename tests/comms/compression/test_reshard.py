"""The guarantees of comms/compression/reshard.py, one by one."""

import pytest
import torch

from comms.compression.reshard import reshard

SIZES = {"bucket0": 6, "bucket1": 4}


def _states(ranks: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    common = {key: torch.randn(size, generator=generator) for key, size in SIZES.items()}
    states = []
    for _ in range(ranks):
        state: dict[str, torch.Tensor] = {}
        for key, size in SIZES.items():
            state[f"{key}/steps"] = torch.tensor(5)
            for name in ("residual", "velocity"):
                state[f"{key}/{name}"] = torch.randn(size, generator=generator)
            state[f"{key}/estimate_sum"] = common[key]
            state[f"{key}/factors"] = common[key][:3]
        states.append(state)
    return states


def _whole(states: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    keys = sorted({path.split("/")[0] for path in states[0]})
    return torch.cat([sum(state[f"{key}/{name}"] for state in states) for key in keys])


@pytest.mark.parametrize("sizes", [SIZES, {"bucket0": 10}, {"bucket0": 1, "bucket1": 9}])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sums_over_ranks_stay(sizes, ranks):
    before, after = _states(2), reshard(_states(2), sizes, ranks)
    assert len(after) == ranks
    for name in ("residual", "velocity"):
        torch.testing.assert_close(_whole(after, name), _whole(before, name))
    for state in after:
        assert {k: state[f"{k}/residual"].numel() for k in sizes} == sizes
        assert all(int(state[f"{key}/steps"]) == 5 for key in sizes)
    torch.testing.assert_close(
        _whole(after, "estimate_sum") / ranks, _whole(before, "estimate_sum") / 2
    )


def test_what_all_hold_alike_is_kept_where_only_ranks_change(caplog):
    after = reshard(_states(2), SIZES, 3)
    assert torch.equal(after[2]["bucket0/factors"], _states(2)[0]["bucket0/factors"])
    assert not caplog.records


def test_what_cannot_be_kept_is_dropped_with_a_message(caplog):
    after = reshard(_states(2), {"bucket0": 10}, 2)
    assert "bucket0/factors" not in after[0]
    assert "'factors' dropped" in caplog.text


def test_the_owners_error_joins_what_was_not_sent():
    states = _states(2)
    for rank, state in enumerate(states):
        state["bucket0/sum_residual"] = torch.full((4,), float(rank + 1))
    want = _whole(_states(2), "residual")
    want[:6] += torch.tensor([1.0, 1, 1, 1, 2, 2])
    torch.testing.assert_close(_whole(reshard(states, SIZES, 2), "residual"), want)


def test_other_gradients_are_refused():
    with pytest.raises(ValueError, match="covers 10 gradient elements and the model has 12"):
        reshard(_states(2), {"bucket0": 12}, 2)
