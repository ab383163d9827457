import pytest
import torch

from parallel.attention import packed_attention
from parallel.branched import branched

# Two documents of 5 that begin with the same 3 tokens, one of 4 alone, two of 2 that are the same.
ENDS = (5, 10, 14, 16, 18)
ROWS = (0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 11, 12)


def heads(count, generator):
    return torch.randn(13, count, 8, generator=generator, requires_grad=True)


@pytest.mark.parametrize("window", [None, 2])
def test_what_rows_get_is_what_they_get_in_documents_written_out(window):
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(ROWS)
    q, k, v = heads(4, generator), heads(2, generator), heads(2, generator)
    weights = torch.randn(13, 4, 8, generator=generator)
    given = {"document_ends": ENDS, "window": window}
    first = [ROWS.index(row) for row in range(13)]
    written_out = packed_attention(q[rows], k[rows], v[rows], **given)[first]
    wanted = torch.autograd.grad((written_out * weights).sum(), (q, k, v))
    out = branched(packed_attention, rows, 13)(q, k, v, **given)
    torch.testing.assert_close(out, written_out, rtol=0, atol=1e-6)
    found = [torch.autograd.grad((out * weights).sum(), (q, k, v), retain_graph=True) for _ in "12"]
    for ours, again, theirs in zip(*found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert torch.equal(ours, again)


def test_documents_that_share_nothing_are_as_without():
    generator = torch.Generator().manual_seed(1)
    q, k, v = heads(2, generator), heads(2, generator), heads(2, generator)
    given = {"document_ends": (6, 13), "window": None}
    out = branched(packed_attention, torch.arange(13), 13)(q, k, v, **given)
    assert torch.equal(out, packed_attention(q, k, v, **given))
