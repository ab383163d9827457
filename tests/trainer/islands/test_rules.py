"""Which batches can be shared out among which islands."""

import pytest

from comms.config import CommsConfig, IslandConfig
from parallel.config import ParallelConfig
from trainer.config import JobConfig, TrainConfig
from trainer.data.config import DataConfig
from trainer.islands.rules import problem_of

BATCH = {"sequences": 4, "unit": 48, "key": "train.global_batch_tokens"}


def test_every_island_has_a_share_and_a_sequence():
    assert problem_of(IslandConfig(), islands=4, **BATCH) is None
    assert problem_of(IslandConfig(shares=(3, 1)), islands=2, **BATCH) is None
    assert problem_of(IslandConfig(shares=(1, 1.5, 1)), islands=3, **BATCH) is None


@pytest.mark.parametrize(
    ("shares", "islands", "wanted"),
    [
        ("equal", 5, "makes 4 sequences .* parallel.island=5; choose .*tokens=240 or more"),
        ((2, 1), 3, r"shares=\[2, 1\] has 2 values, and parallel.island=3; write one for each"),
        ((2, 1), 1, r"has 2 values, and parallel.island=1; write one for each island, or equal"),
        ((10, 1), 2, r"of the 4 sequences that .* are \[4, 0\], .*global_batch_tokens=288 or more"),
    ],
)
def test_what_is_refused_names_the_value_and_one_that_goes(shares, islands, wanted):
    with pytest.raises(ValueError, match=wanted):
        JobConfig(
            data=DataConfig(seq_len=48),
            train=TrainConfig(global_batch_tokens=4 * 48),
            parallel=ParallelConfig(island=islands),
            comms=CommsConfig(island=IslandConfig(shares=shares)),
        )
