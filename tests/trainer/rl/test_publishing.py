"""Two ranks that train, sharded, publish to one that samples."""

import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from comms.weights.agreement import WeightTransferError
from comms.weights.blocks import Block
from comms.weights.channel import WeightChannel
from comms.weights.meeting import Meeting
from comms.weights.plan import Member, Part
from tests.ranks import free_port, run_on_ranks
from trainer.rl.messages import ChannelPlace, Published, PublishFailed
from trainer.rl.publishing import Publisher

NAMES = ("trainer 0", "trainer 1", "worker")


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3, bias=False))
    model.register_buffer("unsaved", torch.zeros(2), persistent=False)
    return model


def place(port, number):
    return ChannelPlace(
        host="127.0.0.1", port=port, prefix=f"weights/{number}", names=NAMES, trainers=2
    )


def join(port, number):
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    takes = {
        name: Part(
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            blocks=(Block((0,) * value.ndim, tuple(value.shape)),),
        )
        for name, value in small_model().state_dict().items()
    }
    meeting = Meeting(store, 2, NAMES, f"weights/{number}")
    return WeightChannel.open(meeting, Member(host="w", takes=takes), deadline_s=20)


def sampling(port, wait):
    """What arrives while the trainers go on."""
    found = {}
    channel = join(port, 0)
    for _ in range(3):
        update = channel.subscribe(deadline_s=20)
        found[update.version] = {name: value.clone() for name, value in update.whole()}
    wait()
    # The worker is silent: version 3 finds nobody. Then it takes part in another channel.
    wait()
    began_s = time.monotonic()
    with pytest.raises(WeightTransferError):
        channel.subscribe(deadline_s=20)
    ended_s = time.monotonic() - began_s
    again = join(port, 1)
    update = again.subscribe(deadline_s=20)
    found["again"] = update.version
    wait()
    return found, ended_s


def training(rank, port, wait):
    model, told = small_model(), []
    fully_shard(model, mesh=DeviceMesh("cpu", [0, 1]))
    publisher = Publisher(model, rank=rank, host="t", deadline_s=20, tell=told.append)
    publisher.expect(place(port, 0))
    publisher.open(place(port, 0), 0)
    for version in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
        publisher.publish(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(7.0)
    wait()
    publisher.publish(3)
    time.sleep(0.3)
    begun_s = time.monotonic()
    # Heard of on another thread, while this one waits for version 3 to arrive.
    beside = threading.Timer(0.3, publisher.expect, [place(port, 2)])
    beside.start()
    publisher.publish(4)
    waited_s = time.monotonic() - begun_s
    beside.join()
    wait()
    begun_s = time.monotonic()
    # The worker is gone before it joins.
    beside = threading.Timer(0.3, publisher.expect, [place(port, 1)])
    beside.start()
    publisher.open(place(port, 2), 5)
    opened_s = time.monotonic() - begun_s
    beside.join()
    publisher.open(place(port, 1), 5)
    wait()
    figures = publisher.take_figures()
    publisher.close()
    return told, (waited_s, opened_s), figures


def one_rank(rank, port):
    store = None
    if rank == 2:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    dist.barrier()
    found = sampling(port, dist.barrier) if rank == 2 else training(rank, port, dist.barrier)
    dist.barrier()
    del store
    return found


def test_workers_get_each_version_as_it_was_and_failures_end_with_the_channel():
    first, second, (found, ended_s) = run_on_ranks(3, one_rank, free_port())
    for version in (0, 1, 2):
        for name, value in small_model().state_dict().items():
            factor = 2**version if name in dict(small_model().named_parameters()) else 1
            assert torch.equal(found[version][name], value * factor)
        assert "unsaved" not in found[version]
    told, waits_s, figures = first
    assert [m.version for m in told if isinstance(m, Published)] == [0, 1, 2, 5]
    failed = [m for m in told if isinstance(m, PublishFailed)]
    assert [(m.version, m.prefix) for m in failed] == [(3, "weights/0"), (5, "weights/2")]
    assert {m.culprits for m in failed} == {("worker",)}
    assert max(waits_s) < 10.0
    assert ended_s < 10.0
    assert found["again"] == 5
    assert figures["publish/seconds"] > 0.0
    assert second[0] == []
