"""What a recipe wants of activations, and the room it is given."""

from dataclasses import fields, replace

import pytest

from offload.config import OffloadConfig
from offload.host_memory import HostLimits
from parallel.pipeline.schedule import PipelineShape
from trainer.activation_plan import (
    device_room_bytes,
    host_room_bytes,
    need_of_tier,
    tier_room_bytes,
    waiting_rounds,
    wanted_tier_bytes,
    wish_of,
)
from trainer.config import JobConfig, TrainConfig
from trainer.reads import ReadLog

GIB = 1 << 30
LIMITS = HostLimits(free_bytes=100 * GIB, cgroup_bytes=40 * GIB, disk_bytes=80 * GIB)
SWAPPED = {"offload.activation_share", "offload.activation_tier", "offload.activation_bytes"}


def job(train=None, **offload):
    return JobConfig(offload=OffloadConfig(**offload), train=TrainConfig(**(train or {})))


@pytest.mark.parametrize(
    ("offload", "looked_at", "not_looked_at"),
    [
        ({"activations": "keep"}, set(), {*SWAPPED, "offload.activation_min_bytes"}),
        ({"activations": "recompute"}, set(), {*SWAPPED, "offload.activation_min_bytes"}),
        ({"activations": "selective"}, {"offload.activation_min_bytes"}, SWAPPED),
        ({"activations": "swap", "disk": "/d"}, {*SWAPPED, "offload.disk_timeout_s"}, set()),
        ({"activations": "auto"}, SWAPPED, {"offload.disk_timeout_s"}),
    ],
)
def test_only_keys_that_matter_are_looked_at(offload, looked_at, not_looked_at):
    log = ReadLog()
    wish_of(log.watch(job(**offload)), on_device=False)
    assert looked_at <= log.read
    assert not log.read & not_looked_at


def test_two_names_of_recomputation_are_one():
    assert wish_of(job(train={"recompute": True}), on_device=False) == wish_of(
        job(activations="recompute"), on_device=True
    )


@pytest.mark.parametrize(
    ("offload", "train", "message"),
    [
        ({"activations": "keep"}, {"recompute": True}, r"set train\.recompute to false"),
        ({"activations": "swap", "disk": "/d"}, {"recompute": True}, "says otherwise"),
        ({"activations": "swap", "disk": "/d"}, {"compile": True}, r"train\.compile to false"),
        ({"activations": "selective"}, {"compile": True}, r"or offload\.activations to recompute"),
    ],
)
def test_contradictions_are_refused(offload, train, message):
    with pytest.raises(ValueError, match=message):
        job(train=train, **offload)


def test_what_there_is_to_choose_from():
    assert wish_of(job(), on_device=False).kinds == ("keep", "selective", "recompute")
    assert wish_of(job(train={"compile": True}), on_device=True).kinds == ("keep", "recompute")
    everything = wish_of(job(disk="/d"), on_device=True)
    assert (everything.kinds[-1], everything.tiers) == ("swap", ("host", "disk"))
    only = wish_of(job(activations="swap", activation_tier="disk", disk="/d"), on_device=True)
    assert (only.kinds, only.tiers, only.disks) == (("swap",), ("disk",), ("/d",))


@pytest.mark.parametrize("offload", [{}, {"activation_tier": "host", "disk": "/d"}])
def test_a_swap_without_a_place_is_refused(offload):
    with pytest.raises(ValueError, match=r"nowhere to go.*name a folder"):
        wish_of(job(activations="swap", **offload), on_device=False)


def test_a_tier_takes_what_is_needed_or_half_of_what_is_left():
    assert wanted_tier_bytes(1000.0, blocks=10, stripe_bytes=4096) == 3 * 4096
    assert tier_room_bytes("disk", LIMITS, fraction=0.9, ranks_on_host=2) == 20 * GIB
    assert tier_room_bytes("host", LIMITS, fraction=0.5, ranks_on_host=2) == 5 * GIB
    unlimited = replace(LIMITS, cgroup_bytes=None)
    assert tier_room_bytes("host", unlimited, fraction=0.5, ranks_on_host=1) == 25 * GIB


def test_what_a_tier_needs_is_of_its_own_kind():
    sizes = {"staging_bytes": 7, "buffers_bytes": 5}
    disk = need_of_tier("disk", GIB, on_device=False, **sizes)
    assert (disk.file_bytes, disk.pageable_bytes, disk.pinned_bytes) == (GIB, 12, 0)
    pinned = need_of_tier("disk", GIB, on_device=True, **sizes)
    assert (pinned.file_bytes, pinned.pageable_bytes, pinned.pinned_bytes) == (GIB, 0, 7)
    host = need_of_tier("host", GIB, on_device=True, staging_bytes=0, buffers_bytes=5)
    assert host.pinned_bytes == GIB
    named = {"pinned_bytes", "file_bytes", "pageable_bytes"}
    assert all(getattr(host, f.name) == 0 for f in fields(host) if f.name not in named)


def test_states_leave_the_rest_of_the_device():
    room = device_room_bytes(100, parameters=2, states="device", transient_bytes=3)
    assert room == 90 - 32 - 3
    assert device_room_bytes(100, parameters=2, states="host", transient_bytes=3) == 90 - 16 - 3
    # States that do not fit beside the weights will be elsewhere.
    assert device_room_bytes(100, parameters=4, states="auto", transient_bytes=0) == 90 - 32
    assert device_room_bytes(100, parameters=99, states="device", transient_bytes=0) == 0
    host = host_room_bytes(
        LIMITS, fraction=0.5, ranks_on_host=2, parameters=GIB // 16, transient_bytes=GIB
    )
    assert host == 8 * GIB


def test_rounds_wait_in_a_pipeline():
    assert waiting_rounds(None, 8) == 1
    assert waiting_rounds(PipelineShape(schedule="1f1b", ranks=4), 8) == 4
    assert waiting_rounds(PipelineShape(schedule="1f1b", ranks=4), 2) == 2
