"""The guarantees of comms/compression/indices.py, one by one."""

import pytest
import torch

from comms.compression.indices import decode_indices, encode_indices, index_bytes

CASES = [
    (1, 1),
    (7, 7),
    (9, 1),
    (1000, 1),
    (1000, 999),
    (65_536, 655),
    (65_537, 65_537),
    (200_000, 200),
    (200_000, 50_000),
]


def _some(numel: int, count: int, where: str) -> torch.Tensor:
    if where == "first":
        return torch.arange(count)
    if where == "last":
        return torch.arange(numel - count, numel)
    generator = torch.Generator().manual_seed(numel + count)
    return torch.randperm(numel, generator=generator)[:count].sort().values


@pytest.mark.parametrize("where", ["first", "last", "anywhere"])
@pytest.mark.parametrize(("numel", "count"), CASES)
def test_decoding_gives_back_the_indices(numel, count, where):
    indices = _some(numel, count, where)
    code = encode_indices(indices, numel)
    assert code.dtype == torch.uint8
    assert torch.equal(decode_indices(code, numel, count), indices)
    assert code.numel() == index_bytes(numel, count)


@pytest.mark.parametrize("ratio", [0.0001, 0.001, 0.01, 0.1, 1.0])
def test_an_index_never_takes_more_than_16_bits(ratio):
    for numel in (10**5, 10**6, 24_500_000, 2**31):
        count = int(numel * ratio)
        assert 8 * index_bytes(numel, count) <= 16 * count
    assert 8 * index_bytes(10**6, 1000) < 12 * 1000
