"""Block kernels agree with each other, and their parts make the whole."""

import pytest
import torch

from parallel.attention import packed_attention
from parallel.sequence.blocks import CpuFlash, CudaFlash, kernel_for
from parallel.sequence.merging import merge_, output_from_sums, row_sums
from parallel.sequence.tiled import Tiled

HEADS, KV_HEADS, WIDTH, ENDS = 6, 2, 16, (1, 40, 45, 400)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tensors(queries=400, keys=400, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(queries + keys)
    shapes = [(queries, HEADS), (keys, KV_HEADS), (keys, KV_HEADS), (queries, HEADS)]
    return [torch.randn(*shape, WIDTH, generator=generator).to(device, dtype) for shape in shapes]


def whole_and_gradients(kernel, q, k, v, grad, ends):
    out, lse = kernel.forward(q, k, v, ends=ends)
    return out, lse, *kernel.backward(grad, q, k, v, out, lse, ends=ends)


def reference(q, k, v, grad, ends):
    inputs = [x.float().requires_grad_(True) for x in (q, k, v)]
    out = packed_attention(*inputs, document_ends=ends, window=None)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.float())]


def check_packed(kernel, q, k, v, grad, tolerance):
    found = whole_and_gradients(kernel, q, k, v, grad, ENDS)
    assert found[1].shape == (q.shape[0], HEADS)
    assert found[1].dtype == torch.float32
    wanted = reference(q, k, v, grad, ENDS)
    for got, want in zip([found[0], *found[2:]], wanted, strict=True):
        assert got.dtype == q.dtype
        torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)


def check_parts(kernel, q, k, v, grad, tolerance):
    """Attention to two parts of the keys, merged, is attention to all of them."""
    out, lse, *gradients = whole_and_gradients(kernel, q, k, v, grad, None)
    merged, merged_lse = (x.float() for x in kernel.forward(q, k[:90], v[:90], ends=None))
    merged_lse = merged_lse.contiguous()
    merge_(merged, merged_lse, *kernel.forward(q, k[90:], v[90:], ends=None))
    torch.testing.assert_close(merged, out.float(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(merged_lse, lse, rtol=tolerance, atol=tolerance)
    stand_in = output_from_sums(grad, row_sums(grad, out))
    first = kernel.backward(grad, q, k[:90], v[:90], stand_in, lse, ends=None)
    second = kernel.backward(grad, q, k[90:], v[90:], stand_in, lse, ends=None)
    found = [first[0].float() + second[0].float()]
    found += [torch.cat(pair).float() for pair in zip(first[1:], second[1:], strict=True)]
    for got, want in zip(found, gradients, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "kernel",
    [CpuFlash(), CpuFlash(groups_heads=False), Tiled()],
    ids=["flash", "flash without groups", "tiled"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_kernels_give_attention_its_parts_and_its_gradients(kernel, dtype, tolerance):
    check_packed(kernel, *tensors(dtype=dtype), tolerance)
    check_parts(kernel, *tensors(300, 150, dtype=dtype), tolerance)


def test_an_output_with_given_sums_has_them_whatever_the_size_of_the_gradient():
    grad = torch.randn(50, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    grad[3] = 0.0
    out = torch.randn(50, HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    for scale in (1e-30, 1.0, 1e15):
        sums = row_sums(grad * scale, out)
        found = row_sums(grad * scale, output_from_sums(grad * scale, sums))
        torch.testing.assert_close(found, sums, rtol=1e-5, atol=0.0)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    [(torch.bfloat16, CudaFlash, 5e-2), (torch.float32, Tiled, 1e-4)],
)
def test_kernels_give_attention_its_parts_and_its_gradients_on_cuda(dtype, kind, tolerance):
    inputs = tensors(dtype=dtype, device="cuda")
    kernel = kernel_for(inputs[0])
    assert isinstance(kernel, kind)
    check_packed(kernel, *inputs, tolerance)
    check_parts(kernel, *tensors(300, 150, dtype=dtype, device="cuda"), tolerance)
