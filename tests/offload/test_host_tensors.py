import pytest
import torch

from offload.host_tensors import HostTensors, PinningRefused

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_tensors_are_zero_and_start_at_a_page():
    tensor = HostTensors(pin=False).zeros(1000)
    assert tensor.shape == (1000,)
    assert not tensor.any()
    assert tensor.data_ptr() % 4096 == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a CUDA device")
def test_pinning_without_a_device_is_refused():
    with pytest.raises(PinningRefused, match="use pin=False"):
        HostTensors(pin=True)


@pytest.mark.gpu
@needs_gpu
def test_pinned_tensors_are_seen_as_pinned_until_closed():
    memory = HostTensors(pin=True)
    tensor = memory.zeros(1 << 20)
    assert tensor.is_pinned()
    memory.close()
    assert not tensor.is_pinned()
