"""Where ranks stand, as the driver tells it before they have met."""

import pytest

from parallel.config import ParallelConfig
from parallel.layout import Layout
from trainer.spread import stage_by_rank


@pytest.mark.parametrize(
    "layout",
    [
        Layout(replica=3),
        Layout(pp=2, tp=2),
        Layout(pp=4),
        Layout(island=2, pp=2, replica=2, shard=3, tp=2),
    ],
    ids=Layout.describe,
)
def test_the_place_in_the_pipeline_is_that_of_the_layout(layout):
    config = ParallelConfig(island=layout.island, pp=layout.pp, tp=layout.tp)
    ranks = range(layout.world_size)
    assert stage_by_rank(config, layout.world_size) == tuple(
        layout.coordinates(rank)["pp"] for rank in ranks
    )


def test_without_a_pipeline_all_ranks_do_the_same():
    assert stage_by_rank(ParallelConfig(pp="auto"), 3) == (0, 0, 0)
