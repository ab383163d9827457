"""The guarantees of parallel/layout.py."""

import pytest

from parallel.config import ParallelConfig
from parallel.layout import Layout, divisors, resolve_layout

LAYOUTS = [Layout(), Layout(replica=3), Layout(shard=4), Layout(replica=2, shard=3)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_coordinates_name_one_rank_and_lines_partition_the_world(layout):
    world = range(layout.world_size)
    assert len({tuple(layout.coordinates(r).values()) for r in world}) == layout.world_size
    for axis in ("replica", "shard"):
        lines = {layout.line(axis, rank) for rank in world}
        assert sorted(rank for line in lines for rank in line) == list(world)
        assert all(rank in layout.line(axis, rank) for rank in world)


def test_shard_varies_fastest():
    assert Layout(replica=2, shard=3).line("shard", 4) == (3, 4, 5)
    assert Layout(replica=2, shard=3).line("replica", 4) == (1, 4)


def test_ranks_and_axes_outside_the_layout_are_refused():
    with pytest.raises(ValueError, match=r"outside 0\.\.5"):
        Layout(replica=2, shard=3).coordinates(6)
    with pytest.raises(ValueError, match="unknown axis 'dp'"):
        Layout().line("dp", 0)


def _resolve(config, world_size, state_bytes=100):
    return resolve_layout(config, world_size=world_size, state_bytes=state_bytes, device_bytes=1000)


def test_auto_replicates_what_fits_and_shards_what_does_not():
    assert _resolve(ParallelConfig(), 4) == Layout(replica=4)
    assert _resolve(ParallelConfig(), 4, state_bytes=251) == Layout(shard=4)
    assert _resolve(ParallelConfig(replica=2), 6) == Layout(replica=2, shard=3)
    assert _resolve(ParallelConfig(shard=2), 6) == Layout(replica=3, shard=2)


def test_axes_that_do_not_fit_the_ranks_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"= 4, but there are 6 ranks; make the product 6"):
        _resolve(ParallelConfig(replica=2, shard=2), 6)
    with pytest.raises(ValueError, match=r"choose one of \[1, 2, 3, 6\]"):
        _resolve(ParallelConfig(shard=4), 6)
    with pytest.raises(ValueError, match="must be a positive integer or auto, got 0"):
        ParallelConfig(shard=0)


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
