"""What does not fit is refused with key, value, rule and the values that would do."""

import pytest

from comms.compression.config import ReplicaConfig
from parallel.config import ParallelConfig
from parallel.fit import ModelShape, check_fit
from parallel.layout import Layout


def _shape(**changes):
    values = {
        "num_layers": 6,
        "num_heads": 8,
        "windowed": False,
        "tied": False,
        "expert_counts": (6, 6),
    }
    return ModelShape(**{**values, **changes})


GOOD = [
    (Layout(), ParallelConfig()),
    (Layout(tp=4, shard=3, ep=3), ParallelConfig(tp=4, ep=3)),
    (Layout(pp=3), ParallelConfig(pp=3, schedule="interleaved")),
    (Layout(shard=8), ParallelConfig(sp=8)),
    (Layout(shard=4, shard_weights=2), ParallelConfig(sp="auto", shard_weights=2)),
]


@pytest.mark.parametrize(("layout", "config"), GOOD, ids=str)
def test_what_fits_is_accepted(layout, config):
    assert check_fit(layout, config, _shape()) is None


BAD = [
    (Layout(shard=4, ep=4), {}, {}, r"parallel.ep=4 does not divide .*=6; .*\[1, 2, 3, 6\]"),
    (Layout(shard=2, ep=2), {}, {"expert_counts": ()}, "the model has no experts"),
    (Layout(pp=7), {}, {}, "needs 7 stages, but model.num_layers=6; choose pp of at most 6"),
    (Layout(pp=4), {"schedule": "zero_bubble"}, {}, "choose pp of at most 3"),
    (Layout(pp=2), {}, {"tied": True}, "untie them or set pp to 1"),
    (Layout(shard=6), {"sp": 4}, {}, r"parallel.sp=4 does not divide .*=6; .*\[1, 2, 3, 6\]"),
    (Layout(shard=6), {"sp": 3}, {}, r"not a power of two.*choose one of \[1, 2\]"),
    (Layout(shard=16), {"sp": 16}, {"windowed": True}, r"8 query heads.*\[1, 2, 4, 8\]"),
    (Layout(shard=2), {"sp": "auto"}, {"capacity": True}, "set the latter to null or sp to 1"),
    (Layout(shard=4, shard_weights=2, tp=2), {}, {}, "do not work with parallel.tp=2"),
    (Layout(island=2, shard=2, ep=2), {"rebalance_interval_steps": 5}, {}, "exchange experts by"),
]


@pytest.mark.parametrize(("layout", "options", "changes", "message"), BAD)
def test_what_does_not_fit_is_refused_with_the_remedy(layout, options, changes, message):
    with pytest.raises(ValueError, match=message):
        check_fit(layout, ParallelConfig(**options), _shape(**changes))


ECONTROL = ReplicaConfig(method="econtrol")
DGC = ReplicaConfig(method="dgc")
UNCOMPRESSED = [
    (Layout(shard=2), {}, ECONTROL, r"has one \(shard 2\); set parallel.replica to 2 or more"),
    (Layout(replica=2, shard=2, shard_weights=1), {}, ECONTROL, "leave both at auto"),
    (Layout(replica=2, shard=2, ep=2), {"rebalance_interval_steps": 3}, ECONTROL, "set that to 0"),
    (Layout(replica=2, tp=2), {}, DGC, "method=dgc clips what each rank holds.*set tp to 1"),
    (Layout(replica=2, tp=2), {}, ReplicaConfig(method="ef", clip_norm=1.0), "clip_norm=1.0 clips"),
]


@pytest.mark.parametrize(("layout", "options", "replica", "message"), UNCOMPRESSED)
def test_what_replicas_cannot_compress_is_refused(layout, options, replica, message):
    with pytest.raises(ValueError, match=message):
        check_fit(layout, ParallelConfig(**options), _shape(), replica)
    assert check_fit(layout, ParallelConfig(**options), _shape()) is None


def test_replicas_compress_beside_every_other_axis():
    for layout in (Layout(replica=2, shard=2, ep=2), Layout(replica=2, pp=2, tp=2)):
        assert check_fit(layout, ParallelConfig(), _shape(), ECONTROL) is None
