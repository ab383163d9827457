import pytest
import torch
from torch import nn

from offload.optimizer import InterleavedAdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 50
LR = 1e-3


def train(dtype, make, steps=STEPS):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 64)).to("cuda", dtype)
    optimizer = make(model)
    generator = torch.Generator(device="cuda").manual_seed(1)
    for _ in range(steps):
        for _ in range(2):
            x = torch.randn(32, 256, generator=generator, device="cuda").to(dtype)
            model(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().float() for p in model.parameters()], optimizer


def ours(**options):
    def make(model):
        return InterleavedAdamW(model.parameters(), lr=LR, subgroup_parameters=16384, **options)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_for_one_placement_overlap_does_not_change_a_bit(dtype, share):
    overlapped, optimizer = train(dtype, ours(share=share, overlap=True))
    in_order, _ = train(dtype, ours(share=share, overlap=False))
    assert all(torch.equal(a, b) for a, b in zip(overlapped, in_order, strict=True))
    stats = optimizer.last_update
    movable = stats.device_subgroups + stats.host_subgroups
    assert stats.device_subgroups == round(share * movable)
    optimizer.close()


def test_across_placements_weights_differ_by_rounding():
    reference, _ = train(torch.float32, lambda m: torch.optim.AdamW(m.parameters(), lr=LR))
    for share in (0.0, 0.5, 1.0):
        found, _ = train(torch.float32, ours(share=share))
        for a, b in zip(found, reference, strict=True):
            # Adam moves a weight by at most about lr a step, and rounding differs per step.
            assert float((a - b).abs().max()) < 0.02 * STEPS * LR


def test_the_share_may_change_every_step():
    def make(model):
        optimizer = ours(share=0.5)(model)
        optimizer.register_step_post_hook(lambda o, *_: o.set_share((o.share + 0.37) % 1.0))
        return optimizer

    changing, optimizer = train(torch.float32, make)
    fixed, _ = train(torch.float32, ours(share=0.5))
    for a, b in zip(changing, fixed, strict=True):
        assert float((a - b).abs().max()) < 0.02 * STEPS * LR
    entry = optimizer.state_dict()["state"][0]
    assert torch.equal(entry["master"].cuda(), changing[0])


def test_the_automatic_share_follows_measured_rates():
    _, optimizer = train(torch.bfloat16, ours(share="auto"), steps=5)
    assert 0.0 <= optimizer.share <= 1.0
    assert optimizer.placing.predicted().total_s > 0.0


def test_a_disk_below_the_host_changes_no_bit(tier):
    on_disk, optimizer = train(torch.bfloat16, ours(share=0.0, disk=tier, disk_share=0.5))
    in_memory, _ = train(torch.bfloat16, ours(share=0.0))
    assert all(torch.equal(a, b) for a, b in zip(on_disk, in_memory, strict=True))
    optimizer.close()
