import pytest
import torch
from torch import nn

from offload.gradients import HostGradients, squared_norm
from offload.subgroups import cut_subgroups

CPU = torch.device("cpu")


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(40, 30).to(dtype)), nn.Parameter(torch.randn(7).to(dtype))]


def backward(params, factor):
    sum((p * factor * (i + 1)).sum() for i, p in enumerate(params)).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_add_up_in_fp32_and_leave_grad(dtype):
    params = parameters(dtype)
    gradients = HostGradients(params, stream=True)
    for factor in (1.0, 2.0, 1 / 256):
        backward(params, factor)
        assert all(p.grad is None for p in params)
    gradients.collect()
    (subgroup,) = cut_subgroups([[(0, 1200), (1, 7)]], 2048)
    for segment, scale in zip(subgroup.segments, (1.0, 2.0), strict=True):
        found = gradients.on_host(subgroup, segment)
        assert found.dtype == torch.float32
        # In bf16 the last summand would be lost.
        assert torch.equal(found, torch.full_like(found, scale * (3.0 + 1 / 256)))
    gradients.close()
    backward(params, 1.0)
    assert params[0].grad is not None


def test_a_parameter_without_gradient_has_none():
    params = parameters()
    gradients = HostGradients(params, stream=True)
    backward(params[:1], 1.0)
    assert [gradients.has(i) for i in range(2)] == [True, False]
    gradients.clear()
    assert not gradients.has(0)


def test_without_stream_grad_belongs_to_the_user():
    params = parameters()
    gradients = HostGradients(params, stream=False)
    backward(params, 1.0)
    params[0].grad.mul_(3.0)
    gradients.collect()
    (subgroup,) = cut_subgroups([[(0, 1200)]], 2048)
    found = gradients.on_host(subgroup, subgroup.segments[0])
    assert found.data_ptr() == params[0].grad.data_ptr()
    assert float(found[0]) == 3.0


def test_the_norm_is_that_of_the_sum():
    params = parameters()
    gradients = HostGradients(params, stream=True)
    assert float(squared_norm(gradients, CPU)) == 0.0
    backward(params, 1.0)
    assert float(squared_norm(gradients, CPU)) == pytest.approx(1200 + 4 * 7)
    backward(params, 1.0)
    assert float(squared_norm(gradients, CPU)) == pytest.approx(4 * (1200 + 4 * 7))
