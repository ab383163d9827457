import pytest
import torch
import torch.nn.functional as F

from trainer.model.experts import grouped_swiglu

EXPERTS, WIDTH, INNER = 5, 16, 24


def weights(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator) / 4).to(device, dtype).requires_grad_(True)
        for shape in ((EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH))
    ]


def rows(counts, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(counts), WIDTH, generator=generator)
    return x.to(device, dtype).requires_grad_(True)


def by_hand(x, counts, gate_up, down):
    parts = []
    for expert, part in enumerate(x.split(counts.tolist())):
        gate, up = (part @ gate_up[expert]).chunk(2, dim=-1)
        parts.append((F.silu(gate) * up) @ down[expert])
    return torch.cat(parts)


@pytest.mark.parametrize("counts", [[3, 1, 0, 7, 2], [0, 0, 11, 0, 0], [1, 0, 0, 0, 0]])
def test_equals_each_expert_by_hand_with_gradients(counts):
    gate_up, down = weights()
    x, counts_E = rows(counts), torch.tensor(counts)
    got, want = (f(x, counts_E, gate_up, down) for f in (grouped_swiglu, by_hand))
    torch.testing.assert_close(got, want)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    for a, b in zip(
        torch.autograd.grad(got, (x, gate_up, down), upstream),
        torch.autograd.grad(want, (x, gate_up, down), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_an_expert_without_rows_gets_exact_zeros():
    gate_up, down = weights()
    out = grouped_swiglu(rows([4, 0, 2, 0, 1]), torch.tensor([4, 0, 2, 0, 1]), gate_up, down)
    for gradient in torch.autograd.grad(out.sum(), (gate_up, down)):
        assert not gradient[1].any()
        assert not gradient[3].any()
        assert gradient[[0, 2, 4]].flatten(1).any(dim=1).all()


def test_rows_of_one_expert_do_not_affect_another():
    gate_up, down = weights()
    counts_E = torch.tensor([2, 3, 0, 0, 1])
    x = rows(counts_E.tolist()).detach()
    before = grouped_swiglu(x, counts_E, gate_up, down)
    x[2:5] += 1.0
    after = grouped_swiglu(x, counts_E, gate_up, down)
    assert torch.equal(before[[0, 1, 5]], after[[0, 1, 5]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("counts", [[3, 1, 0, 7, 2], [0, 0, 11, 0, 0]])
def test_the_grouped_kernel_equals_each_expert_by_hand(counts):
    gate_up, down = weights("cuda", torch.bfloat16)
    x, counts_E = rows(counts, "cuda", torch.bfloat16), torch.tensor(counts, device="cuda")
    got, want = (f(x, counts_E, gate_up, down) for f in (grouped_swiglu, by_hand))
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (x, gate_up, down)),
        torch.autograd.grad(want.sum(), (x, gate_up, down)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=5e-2, atol=5e-2)
