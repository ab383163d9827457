"""The guarantees of comms/compression/selection.py, one by one."""

import pytest
import torch

from comms.compression.selection import largest, spread, target_count

NUMEL = 200_000


def _vectors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(NUMEL, generator=generator)
    steps = torch.arange(NUMEL)
    return {
        "normal": normal,
        "heavy tail": normal.sign() * normal.abs().pow(9),
        "uniform": torch.rand(NUMEL, generator=generator),
        "zeros": torch.zeros(NUMEL),
        "constant": torch.full((NUMEL,), 3.0),
        "few ties": normal.round(),
        "mostly zero": torch.where(steps % 997 == 0, normal, 0.0),
        "one entry": torch.where(steps == 123_457, 1.0, 0.0),
        "sorted": steps.float(),
        "one block": torch.where((steps > 1000) & (steps < 1300), normal, 1e-9 * normal),
        "periodic": torch.where(steps % 21 == 4, 1.0, 0.001 * normal),
        "tiny": normal * 1e-38,
        "infinite": torch.where(steps == 7, torch.inf, normal),
    }


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.25])
@pytest.mark.parametrize("name", list(_vectors()))
def test_exactly_the_largest_are_chosen(name, ratio):
    magnitudes = _vectors()[name].abs()
    count = target_count(NUMEL, ratio)
    for offset in (0, 4_000_000_019):
        indices = largest(magnitudes, count, sample_ratio=0.01, offset=offset)
        assert indices.numel() == count
        assert bool((indices.diff() > 0).all())
        assert int(indices[0]) >= 0
        assert int(indices[-1]) < NUMEL
        left = torch.ones(NUMEL, dtype=torch.bool)
        left[indices] = False
        assert magnitudes[left].max() <= magnitudes[indices].min()


def test_the_same_arguments_give_the_same_indices():
    magnitudes = _vectors()["few ties"].abs()
    first, second = (largest(magnitudes, 777, sample_ratio=0.01, offset=5) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("numel", "count"), [(1, 1), (10, 10), (10, 3), (1_000_003, 1000)])
def test_random_entries_are_different_and_in_order(numel, count):
    indices = spread(numel, count, torch.Generator().manual_seed(1))
    assert indices.numel() == count
    assert bool((indices.diff() > 0).all())
    assert 0 <= int(indices[0]) <= int(indices[-1]) < numel


def test_random_entries_reach_everywhere_alike():
    generator = torch.Generator().manual_seed(2)
    hits = torch.zeros(12)
    for _ in range(1000):
        hits[spread(12, 3, generator)] += 1
    assert (hits / 1000 - 0.25).abs().max() < 0.06


def test_at_least_one_entry_is_sent():
    assert target_count(5, 0.001) == 1
    assert target_count(5, 1.0) == 5
