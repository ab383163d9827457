import pytest
import torch

from offload.activations.arena import Arena

PAGE = 4096


def test_a_lease_is_not_given_twice():
    arena = Arena(4 * PAGE, torch.device("cpu"))
    one = arena.lease(0, 2 * PAGE)
    assert arena.lease(PAGE, PAGE) is None
    other = arena.lease(2 * PAGE, 2 * PAGE)
    one.fill_(1), other.fill_(2)
    assert int(one.sum()) == 2 * PAGE
    assert one.data_ptr() % PAGE == 0


def test_a_lease_ends_with_the_last_tensor_on_it():
    arena = Arena(2 * PAGE, torch.device("cpu"))
    view = arena.lease(0, PAGE).view(torch.float32)[5:].t()
    assert arena.lease(0, PAGE) is None
    graph = (view.clone().requires_grad_() * view).sum()
    del view
    assert arena.lease(0, PAGE) is None
    del graph
    assert arena.lease(0, PAGE) is not None


def test_a_lease_outside_is_refused():
    arena = Arena(PAGE, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"\[0, 8192\) is not within an arena of 4096"):
        arena.lease(0, 2 * PAGE)


@pytest.mark.gpu
def test_on_a_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    arena = Arena(2 * PAGE, torch.device("cuda", 0))
    lease = arena.lease(PAGE, PAGE)
    assert arena.lease(PAGE, PAGE) is None
    assert int(lease.fill_(3).sum()) == 3 * PAGE
    del lease
    assert int(arena.lease(PAGE, PAGE)[0]) == 3
