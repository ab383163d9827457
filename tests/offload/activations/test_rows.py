import torch

from offload.activations.rows import Comparison, RowCheck


def test_a_run_is_compared_once_per_inputs_and_saved_tensors():
    check, inputs = RowCheck(), ("pre", 10)
    assert check.wants_originals(inputs)
    check.note(inputs, ("a",), rows_suffice=True)
    assert not check.wants_originals(inputs)
    assert check.known(inputs, ("a",))
    assert check.rows_suffice(inputs, ("a",))


def test_a_run_that_saves_something_new_asks_for_the_next_comparison():
    check, inputs = RowCheck(), ("pre", 10)
    check.note(inputs, ("a",), rows_suffice=True)
    assert not check.known(inputs, ("b",))
    assert not check.rows_suffice(inputs, ("b",))
    assert check.wants_originals(inputs)


def test_bits_are_compared_not_values():
    originals = [torch.tensor([[1.0], [0.0], [float("nan")]]), None]
    same = Comparison(originals, swapped_rows=1)
    same.take(0, None, torch.tensor([[0.0], [float("nan")]]), 1)
    same.take(1, None, torch.tensor([[5.0]]), 1)
    assert (same.equal, same.elements) == (True, 2)
    other = Comparison(originals, swapped_rows=1)
    other.take(0, None, torch.tensor([[9.0], [-0.0], [float("nan")]]), 0)
    assert not other.equal
