import math

import pytest
import torch

from parallel.attention import cached_attention, packed_attention

HEADS, KV_HEADS, WIDTH = 6, 2, 16


def tensors(tokens, *, device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(tokens, heads, WIDTH, generator=generator)
        .to(device, dtype)
        .requires_grad_(True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def naive(q_THd, k_TKd, v_TKd, *, document_ends, window):
    """Masked softmax over all pairs of tokens, in fp64."""
    tokens, groups = q_THd.shape[0], q_THd.shape[1] // k_TKd.shape[1]
    k_THd, v_THd = (x.double().repeat_interleave(groups, dim=1) for x in (k_TKd, v_TKd))
    scores_Hqk = torch.einsum("qhd,khd->hqk", q_THd.double(), k_THd) / math.sqrt(WIDTH)
    document_T = torch.bucketize(torch.arange(tokens), torch.tensor(document_ends), right=True)
    at = torch.arange(tokens)
    seen = (document_T[:, None] == document_T) & (at[:, None] >= at)
    if window is not None:
        seen &= at[:, None] - at < window
    seen = seen.to(scores_Hqk.device)
    weights_Hqk = scores_Hqk.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights_Hqk, v_THd)


def gradients(function, inputs, upstream, **options):
    output = function(*inputs, **options)
    return [output, *torch.autograd.grad(output, inputs, upstream.to(output))]


CASES = [
    ((1,), None),
    ((37,), None),
    ((1, 2, 3, 20, 37), None),
    ((3, 8, 11, 400, 405, 408), None),
    ((3, 8, 11, 16, 25, 34), 4),
    ((13, 60, 61), 5),
    ((13, 60, 61), 1),
    ((300,), 70),
    ((29, 400), 100),
    ((700,), 600),
    ((50,), 50),
]


@pytest.mark.parametrize(("ends", "window"), CASES)
def test_equals_a_masked_softmax_forward_and_backward(ends, window):
    inputs = tensors(ends[-1])
    upstream = torch.randn(ends[-1], HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    options = {"document_ends": ends, "window": window}
    wanted = gradients(naive, inputs, upstream, **options)
    for got, want in zip(
        gradients(packed_attention, inputs, upstream, **options), wanted, strict=True
    ):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-5, atol=2e-6)


def test_what_a_document_gets_is_bitwise_the_same_with_others_and_alone():
    ends = (3, 8, 11, 16, 41, 66, 69)
    inputs = tensors(ends[-1])
    upstream = torch.randn(ends[-1], HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    together = gradients(packed_attention, inputs, upstream, document_ends=ends, window=None)
    for start, end in zip((0, *ends), ends, strict=False):
        rows = slice(start, end)
        own = [x.detach()[rows].requires_grad_(True) for x in inputs]
        alone = gradients(
            packed_attention, own, upstream[rows], document_ends=(end - start,), window=None
        )
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one, all_[rows])


def test_gradients_of_many_documents_take_no_tensor_of_all_tokens_each():
    # Different lengths, so that each document is computed by itself.
    lengths = range(1, 60)
    ends = tuple(sum(lengths[: n + 1]) for n in range(len(lengths)))
    inputs = tensors(ends[-1])
    output = packed_attention(*inputs, document_ends=ends, window=None)
    with torch.profiler.profile(profile_memory=True) as profile:
        output.sum().backward()
    taken = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
    assert taken < 40 * inputs[0].numel() * 4


def test_documents_do_not_see_each_other():
    q, k, v = tensors(20)
    before = packed_attention(q, k, v, document_ends=(8, 20), window=None)
    k2, v2 = k.clone(), v.clone()
    k2[:8], v2[:8] = 7.0, -7.0
    after = packed_attention(q, k2, v2, document_ends=(8, 20), window=None)
    assert torch.equal(before[8:], after[8:])
    assert not torch.equal(before[:8], after[:8])


def test_no_tensor_is_as_large_as_tokens_times_tokens():
    tokens, window = 2048, 64
    q, k, v = tensors(tokens)

    def largest_saved(window):
        sizes = [0]

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            packed_attention(q, k, v, document_ends=(tokens,), window=window)
        return max(sizes)

    assert largest_saved(None) <= tokens * HEADS * WIDTH
    assert largest_saved(window) <= tokens * HEADS * WIDTH


@pytest.mark.parametrize("window", [None, 1, 7, 30])
@pytest.mark.parametrize("new", [1, 4, 30])
def test_cached_attention_gives_the_last_rows_of_the_whole(new, window):
    q, k, v = (x.detach() for x in tensors(30))
    whole = packed_attention(q, k, v, document_ends=(30,), window=window)
    cached = cached_attention(q[-new:], k, v, window=window)
    torch.testing.assert_close(cached, whole[-new:], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("ends", "window"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equals_a_masked_softmax_on_cuda(ends, window, dtype):
    inputs = tensors(ends[-1], device="cuda", dtype=dtype)
    upstream = torch.randn(ends[-1], HEADS, WIDTH, device="cuda")
    options = {"document_ends": ends, "window": window}
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    wanted = gradients(naive, inputs, upstream, **options)
    for got, want in zip(
        gradients(packed_attention, inputs, upstream, **options), wanted, strict=True
    ):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=tolerance, atol=tolerance)
