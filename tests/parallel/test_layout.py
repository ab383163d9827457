"""The guarantees of parallel/layout.py."""

import pytest

from parallel.config import ParallelConfig
from parallel.layout import Layout, divisors, resolve_layout

LAYOUTS = [
    Layout(),
    Layout(replica=3),
    Layout(shard=4),
    Layout(replica=2, shard=3),
    Layout(pp=2, replica=2, shard=6, tp=2, ep=3),
    Layout(island=3, pp=2, replica=2, shard=2, tp=2, ep=2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_coordinates_name_one_rank_and_lines_partition_the_world(layout):
    world = range(layout.world_size)
    assert len({tuple(layout.coordinates(r).values()) for r in world}) == layout.world_size
    for axis in ("island", "pp", "replica", "shard", "tp", "ep"):
        lines = {layout.line(axis, rank) for rank in world}
        assert sorted(rank for line in lines for rank in line) == list(world)
        assert all(rank in layout.line(axis, rank) for rank in world)


def test_shard_varies_fastest():
    assert Layout(replica=2, shard=3).line("shard", 4) == (3, 4, 5)
    assert Layout(replica=2, shard=3).line("replica", 4) == (1, 4)


def test_tp_varies_fastest_and_ep_lies_inside_shard():
    layout = Layout(pp=2, replica=2, shard=4, tp=2, ep=2)
    assert layout.line("tp", 5) == (4, 5)
    assert layout.line("ep", 5) == (5, 7)
    assert layout.line("shard", 5) == (1, 3, 5, 7)
    assert layout.line("pp", 5) == (5, 21)


def test_pools_are_ranks_with_other_tokens_and_the_same_layers():
    layout = Layout(pp=2, replica=2, shard=2, tp=2)
    pools = {layout.pool(rank) for rank in range(layout.world_size)}
    assert sorted(rank for pool in pools for rank in pool) == list(range(layout.world_size))
    for pool in pools:
        assert [layout.data_rank(rank) for rank in pool] == list(range(layout.data_ranks))
        assert len({layout.coordinates(rank)["pp"] for rank in pool}) == 1


def test_an_island_is_a_block_of_ranks_that_holds_every_other_line():
    layout = Layout(island=3, pp=2, replica=2, shard=2, tp=2, ep=2)
    islands = layout.islands()
    assert [rank for island in islands for rank in island] == list(range(layout.world_size))
    for rank in range(layout.world_size):
        own = set(islands[layout.island_of(rank)])
        assert rank in own
        assert set(layout.pool(rank)) <= own
        for axis in ("pp", "replica", "shard", "tp", "ep"):
            assert set(layout.line(axis, rank)) <= own
        assert layout.line("island", rank) == tuple(rank % 16 + 16 * n for n in range(3))


def test_islands_are_equal_and_whole_hosts():
    config = ParallelConfig(island=2)
    assert _resolve(config, 16) == Layout(island=2, replica=8)
    assert _resolve(config, 4) == Layout(island=2, replica=2)
    with pytest.raises(ValueError, match=r"island=3 does not divide the 8 ranks.*\[1, 2, 4, 8\]"):
        _resolve(ParallelConfig(island=3), 8)
    with pytest.raises(ValueError, match=r"islands of 12 ranks.*hosts of 8; choose one of \[1, 3,"):
        _resolve(config, 24)
    with pytest.raises(ValueError, match="does not divide the 3 ranks of an island"):
        _resolve(ParallelConfig(island=2, tp=2), 6)


def test_ranks_and_axes_outside_the_layout_are_refused():
    with pytest.raises(ValueError, match=r"outside 0\.\.5"):
        Layout(replica=2, shard=3).coordinates(6)
    with pytest.raises(ValueError, match="unknown axis 'dp'"):
        Layout().line("dp", 0)


def _resolve(config, world_size, state_bytes=100):
    return resolve_layout(
        config,
        world_size=world_size,
        state_bytes=state_bytes,
        device_bytes=1000,
        num_experts=12,
        ranks_per_host=8,
    )


def test_auto_replicates_what_fits_and_shards_what_does_not():
    assert _resolve(ParallelConfig(), 4) == Layout(replica=4)
    assert _resolve(ParallelConfig(), 4, state_bytes=251) == Layout(shard=4)
    assert _resolve(ParallelConfig(replica=2), 6) == Layout(replica=2, shard=3)
    assert _resolve(ParallelConfig(shard=2), 6) == Layout(replica=3, shard=2)


def test_model_axes_take_ranks_from_the_data_axes():
    assert _resolve(ParallelConfig(pp=2, tp=2), 8) == Layout(pp=2, replica=2, tp=2)
    assert _resolve(ParallelConfig(tp=2, shard=2), 8) == Layout(replica=2, shard=2, tp=2)
    # Experts and narrower widths need ranks that are sharded over.
    assert _resolve(ParallelConfig(ep=2), 4) == Layout(shard=4, ep=2)
    assert _resolve(ParallelConfig(ep="auto"), 16) == Layout(shard=16, ep=4)
    assert _resolve(ParallelConfig(ep="auto", tp=4), 16) == Layout(shard=4, tp=4, ep=2)
    narrow = _resolve(ParallelConfig(shard_weights=2), 4)
    assert narrow == Layout(shard=4, shard_weights=2)
    assert narrow.hierarchical
    assert not _resolve(ParallelConfig(shard_weights=4), 4).hierarchical


def test_model_axes_that_do_not_fit_are_refused_with_the_divisors():
    with pytest.raises(ValueError, match=r"pp=2 × parallel.tp=2 = 4 does not divide the 6 ranks"):
        _resolve(ParallelConfig(pp=2, tp=2), 6)
    with pytest.raises(ValueError, match=r"parallel.ep=3 does not divide parallel.shard=4"):
        _resolve(ParallelConfig(ep=3), 4)
    with pytest.raises(ValueError, match=r"shard_gradients=3 .*choose one of \[1, 2, 4\]"):
        _resolve(ParallelConfig(shard_gradients=3), 4)
    with pytest.raises(ValueError, match=r"shard_weights=4 does not divide .*=2"):
        _resolve(ParallelConfig(shard_weights=4, shard_gradients=2), 4)


def test_axes_that_do_not_fit_the_ranks_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"= 4, but there are 6 ranks; make the product 6"):
        _resolve(ParallelConfig(replica=2, shard=2), 6)
    with pytest.raises(ValueError, match=r"choose one of \[1, 2, 3, 6\]"):
        _resolve(ParallelConfig(shard=4), 6)
    with pytest.raises(ValueError, match="must be a positive integer or auto, got 0"):
        ParallelConfig(shard=0)


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_people_read_the_axes_in_use():
    assert Layout().describe() == "one rank"
    layout = Layout(replica=2, shard=4, ep=2, shard_weights=2)
    assert layout.describe() == (
        "replica 2 × shard 4 × ep 2 (inside shard) × weights over 2, gradients over 4, "
        "optimizer states over 4"
    )
