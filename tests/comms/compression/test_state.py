"""The guarantees of comms/compression/state.py, one by one."""

import torch

from comms.compression.state import Slot

LIKE = torch.zeros(6)


def _filled() -> Slot:
    slot = Slot()
    slot.begin()
    slot.replace("a", torch.arange(6.0))
    slot.replace("b", torch.ones(6))
    slot.commit()
    return slot


def _write_everything(slot: Slot) -> None:
    slot.begin()
    slot.write("b", torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
    slot.write("b", torch.tensor([2, 3]), torch.tensor([7.0, 8.0]))
    torch.add(slot.values["a"], 1, out=slot.buffer("a", LIKE))
    slot.replace("a", slot.values["a"] + 1)
    slot.write("a", torch.tensor([0]), torch.tensor([9.0]))
    slot.get("new", LIKE)
    slot.drop("b")


def test_rollback_restores_the_last_commit():
    slot = _filled()
    _write_everything(slot)
    slot.rollback()
    assert set(slot.values) == {"a", "b"}
    assert torch.equal(slot.values["a"], torch.arange(6.0))
    assert torch.equal(slot.values["b"], torch.ones(6))
    assert slot.steps == 1


def test_rollback_restores_what_was_partly_written_and_then_replaced():
    slot = _filled()
    slot.begin()
    slot.write("b", torch.tensor([0]), torch.tensor([4.0]))
    slot.replace("b", slot.values["b"] * 2)
    slot.rollback()
    assert torch.equal(slot.values["b"], torch.ones(6))


def test_committed_is_the_last_commit_while_a_step_is_under_way():
    slot = _filled()
    _write_everything(slot)
    seen = slot.committed()
    assert set(seen) == {"a", "b"}
    assert torch.equal(seen["a"], torch.arange(6.0))
    assert torch.equal(seen["b"], torch.ones(6))
    slot.commit()
    assert set(slot.committed()) == {"a", "new"}
    assert slot.committed()["a"].tolist() == [9, 2, 3, 4, 5, 6]
    assert slot.steps == 2


def test_two_buffers_take_turns():
    slot, places = Slot(), set()
    for number in range(6):
        slot.begin()
        before = slot.get("a", LIKE)
        after = torch.add(before, 1, out=slot.buffer("a", LIKE))
        slot.replace("a", after)
        if number > 0:
            places.add(after.data_ptr())
        slot.commit()
    assert len(places) == 2
    assert slot.values["a"].tolist() == [6.0] * 6


def test_a_step_left_open_counts_as_committed():
    slot = _filled()
    slot.begin()
    slot.replace("a", torch.zeros(6))
    slot.begin()
    slot.rollback()
    assert not slot.values["a"].any()
    assert slot.steps == 2


def test_values_of_the_last_commit_wait_for_the_guard():
    slot = _filled()
    asked = []
    slot.guard = lambda: asked.append(slot.values["b"].clone())
    slot.begin()
    slot.replace("a", slot.values["a"] + 1)
    slot.write("a", torch.tensor([0]), torch.tensor([9.0]))
    assert asked == []
    slot.write("b", torch.tensor([0]), torch.tensor([4.0]))
    assert torch.equal(asked[0], torch.ones(6))
    assert slot.values["b"][0] == 4.0


def test_a_small_value_is_kept_where_the_one_before_the_last_was():
    slot, places = Slot(), []
    for step in range(4):
        slot.begin()
        slot.keep("norm", torch.tensor(float(step)))
        places.append(slot.values["norm"].data_ptr())
        slot.commit()
        assert slot.values["norm"] == step
    assert places[0] == places[2] != places[1] == places[3]
