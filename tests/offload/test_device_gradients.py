import pytest
import torch
from torch import nn

from offload.device_gradients import DeviceGradients
from offload.gradients import squared_norm
from offload.host_tensors import HostTensors
from offload.subgroups import cut_subgroups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rounds", [1, 3])
def test_sums_are_complete_on_the_side_where_they_are_used(dtype, rounds):
    device = torch.device("cuda")
    parameter = nn.Parameter(torch.zeros(4096, dtype=dtype, device=device))
    subgroups = cut_subgroups([[(0, 4096)]], 1024)
    memory = HostTensors(pin=True)
    gradients = DeviceGradients(
        [parameter],
        subgroups,
        host={s.index: memory.zeros(s.size) for s in subgroups},
        updates_on_device=lambda index: index % 2 == 0,
        stream=True,
    )
    factors = torch.rand(rounds, 4096, device=device).to(dtype)
    for _ in range(2):
        for factor in factors:
            (parameter * factor).sum().backward()
            assert parameter.grad is None
        expected = factors.float().sum(0)
        for subgroup in subgroups:
            (segment,) = subgroup.segments
            wanted = expected[segment.in_parameter]
            if subgroup.index % 2 == 0:
                found = gradients.on_device(subgroup, segment)
            else:
                found = gradients.on_host(subgroup, segment).to(device)
            torch.testing.assert_close(found, wanted)
        norm = float(squared_norm(gradients, device))
        assert norm == pytest.approx(float(expected.square().sum()), rel=1e-4)
        gradients.clear()
        assert not gradients.has(0)
    gradients.close()
    memory.close()
