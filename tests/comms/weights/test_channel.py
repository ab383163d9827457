"""The guarantees of comms/weights/channel.py on four ranks: two train, two sample."""

import os
import threading
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from comms.weights.agreement import Deadline, WeightTransferError
from comms.weights.blocks import Block
from comms.weights.channel import WeightChannel, abandon
from comms.weights.meeting import Meeting, connect
from comms.weights.plan import Member, Part
from comms.weights.transfer import Bill
from comms.weights.wire import message_bytes
from tests.comms.weights.roles import (
    BUCKET_BYTES,
    ELEMENTS,
    NAMES,
    WHOLE,
    cut,
    given_parts,
    given_tensors,
    leave_together,
    model,
    store_of,
    taken_parts,
)
from tests.ranks import free_port, run_on_ranks


def trainer_values(rank: int) -> dict[str, Tensor]:
    """Sharded over ranks 0 and 1 by FSDP2; the others hold nothing of it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("role", "shard"))
    net = model()
    fully_shard(net, mesh=mesh["shard"])
    return {name: value.detach() for name, value in net.named_parameters()} if rank < 2 else {}


def member_for(kind: str, rank: int, values: dict[str, Tensor]) -> Member:
    if rank < 2:
        both = taken_parts(rank) if kind == "both" else {}
        return Member(host="t", gives=given_parts(values), takes=both)
    host = f"r{rank}" if kind == "hosts" else "r"
    return Member(host=host, takes=taken_parts(rank - 2 if kind == "columns" else None))


def one_version(
    channel: WeightChannel, member: Member, values: dict[str, Tensor], version: int
) -> tuple[bool, Bill]:
    """Move packed weights that change at once; whether what arrives is right, and the bill."""
    if not member.gives:
        update = channel.subscribe(deadline_s=20)
    else:
        scaled = {name: [t * version for t in ts] for name, ts in given_tensors(values).items()}
        packed = channel.pack(version, scaled)
        torch._foreach_zero_([tensor for tensors in scaled.values() for tensor in tensors])
        if not member.takes:
            return True, channel.publish(version, packed, deadline_s=20)
        update = channel.exchange(version, packed, deadline_s=20)
    right = update.version == version
    for name, got in update.whole():
        expected = cut(WHOLE[name] * version, member.takes[name]).bfloat16()
        right = right and torch.equal(got, expected)
    return right, update.bill


def _resharded(rank: int, port: int) -> dict[str, object]:
    values, store = trainer_values(rank), store_of(rank, port)
    found: dict[str, object] = {}
    for kind in ("copies", "columns", "hosts", "both"):
        member = member_for(kind, rank, values)
        channel = WeightChannel.open(
            Meeting(store, rank, NAMES, kind), member, bucket_bytes=BUCKET_BYTES
        )
        for version in (1, 2, 3):
            found[f"{kind} {version}"] = one_version(channel, member, values, version)
        found[f"{kind} announced"] = channel.announced()
        channel.close()
    leave_together(rank, store, 4)
    return found


def test_weights_arrive_bitwise_and_cross_into_a_host_once():
    ranks = run_on_ranks(4, _resharded, free_port())
    messages = message_bytes(BUCKET_BYTES) - BUCKET_BYTES + 8
    for found in ranks:
        assert all(value[0] for key, value in found.items() if "announced" not in key)
        assert not found["copies announced"]
    for kind, copies in (("copies", 1), ("hosts", 2)):
        sent = sum(found[f"{kind} 2"][1].sent_bytes for found in ranks[:2])
        least = copies * 2 * ELEMENTS
        # A checksum and a version for each message of a bucket, and its last word filled up.
        assert least < sent <= least + messages * (2 * copies + sent // BUCKET_BYTES)
    for found in ranks[2:]:
        bill = found["copies 2"][1]
        assert 2 * ELEMENTS < bill.received_bytes < 2 * ELEMENTS * 1.5
        assert bill.sent_bytes > 0, "each passes on what it got first"
        assert found["hosts 2"][1].sent_bytes == 0
        parts_s = bill.pack_s + bill.wire_s + bill.unpack_s + bill.agree_s
        assert 0 < parts_s <= bill.total_s


class Tampered:
    """A group that does something else to what this rank sends."""

    def __init__(self, group, act) -> None:
        self.group = group
        self.act = act

    def send(self, tensors, to, tag):
        self.act(tensors[0])
        return self.group.send(tensors, to, tag)

    def recv(self, tensors, source, tag):
        return self.group.recv(tensors, source, tag)


def hang(store: dist.Store) -> None:
    """Say nothing until the others have given up."""
    while store.add("given up", 0) < 3:
        time.sleep(0.01)


ACTS = {
    "damaged": lambda data, store: data[3].bitwise_xor_(4),
    "hangs": lambda data, store: hang(store),
    "dies": lambda data, store: os._exit(0),
}
DEADLINES_S = {"damaged": 40.0, "hangs": 2.5, "dies": 40.0}


def member_of(rank: int, ranks: int) -> Member:
    """Each trainer has all weights; replicas share the sending."""
    if rank < ranks // 2:
        return Member(host="t", gives=given_parts(WHOLE))
    return Member(host="r", takes=taken_parts(None))


def move(channel: WeightChannel, member: Member, version: int, deadline_s: float) -> bool:
    """Publish or subscribe; whether the weights are right."""
    if member.gives:
        given = {name: [value * version] for name, value in WHOLE.items()}
        channel.publish(version, given, deadline_s=deadline_s)
        return True
    update = channel.subscribe(deadline_s=deadline_s)
    return update.version == version and all(
        torch.equal(got, (WHOLE[name] * version).bfloat16()) for name, got in update.whole()
    )


def _faulty(rank: int, port: int, fault: str, faulty: int) -> dict[str, object]:
    store, member = store_of(rank, port), member_of(rank, 4)
    meeting = Meeting(store, rank, NAMES, "first")
    group = connect(dist.PrefixStore("g", store), rank, 4, Deadline(10))
    if rank == faulty:
        group = Tampered(group, partial(ACTS[fault], store=store))
    channel = WeightChannel.open(meeting, member, bucket_bytes=BUCKET_BYTES, group=group)
    del group
    found: dict[str, object] = {}
    started_s = time.monotonic()
    with pytest.raises(WeightTransferError) as caught:
        move(channel, member, 1, DEADLINES_S[fault])
    found["seconds"] = time.monotonic() - started_s
    found["culprits"], found["text"] = caught.value.culprits, str(caught.value)
    found["usable"] = channel.usable
    store.add("given up", 1)
    with pytest.raises(RuntimeError, match="open another one"):
        move(channel, member, 1, 1.0)
    if rank != faulty:
        left = [r for r in range(4) if r != faulty]
        again = Meeting(store, left.index(rank), [NAMES[r] for r in left], "second")
        channel = WeightChannel.open(again, member, deadline_s=20, bucket_bytes=BUCKET_BYTES)
        found["again"] = move(channel, member, 1, 20)
    leave_together(rank, store, 3 if fault == "dies" else 4)
    return found


@pytest.mark.parametrize(
    ("fault", "faulty"), [("damaged", 1), ("hangs", 1), ("dies", 1), ("dies", 2)]
)
def test_a_failed_transfer_names_who_failed_and_the_others_go_on(fault, faulty):
    ranks = run_on_ranks(4, _faulty, free_port(), fault, faulty)
    assert (ranks[faulty] is None) == (fault == "dies")
    for rank, found in enumerate(ranks):
        if found is None or (fault == "hangs" and rank == faulty):
            continue
        assert found["culprits"] == (faulty,), found["text"]
        assert (
            f"version 1 of the weights was not taken by anyone: {NAMES[faulty]} " in found["text"]
        )
        assert not found["usable"]
        # A hung rank is given up at the deadline, and the others long before it.
        assert found["seconds"] < (40.0 if fault != "hangs" else 2.5 + 2.0 + 10.0)
        if rank != faulty:
            assert found["again"]


def _refused(rank: int, port: int) -> dict[str, object]:
    store, member = store_of(rank, port), member_of(rank, 4)
    found: dict[str, object] = {}
    channel = WeightChannel.open(Meeting(store, rank, NAMES), member, bucket_bytes=BUCKET_BYTES)
    wrong = {name: [value[:3]] for name, value in WHOLE.items()}
    given = {name: [value] for name, value in WHOLE.items()}
    for key, version, weights in (("version", 9, given), ("shape", 5, wrong)):
        act = partial(move, channel, member, 5, 10)
        if rank == 1:
            act = partial(channel.publish, version, weights, deadline_s=10)
        with pytest.raises(WeightTransferError) as caught:
            act()
        found[key] = str(caught.value)
    found["after"] = move(channel, member, 6, 10)
    if rank == 1:
        member = Member(host="t", gives=given_parts({n: v.T for n, v in WHOLE.items()}))
    with pytest.raises(WeightTransferError) as caught:
        WeightChannel.open(Meeting(store, rank, NAMES, "other"), member)
    found["open"] = str(caught.value)
    absent = Meeting(store, rank, (*NAMES, "rollout 2"), "absent")
    with pytest.raises(WeightTransferError) as caught:
        WeightChannel.open(absent, member, deadline_s=2)
    found["absent"] = (caught.value.culprits, str(caught.value))
    leave_together(rank, store, 4)
    return found


def test_what_does_not_fit_is_refused_by_all_before_anything_is_sent():
    for found in run_on_ranks(4, _refused, free_port()):
        assert "trainer 1 says: it gives version 9, and rank 0 version 5" in found["version"]
        assert (
            "trainer 1 says: weight 0.weight has local parts of shapes [(3, 12)]" in found["shape"]
        )
        assert found["after"], "nothing was sent, so the channel still works"
        assert "weight 0.weight has the shapes [(12, 20), (20, 12)]" in found["open"]
        assert found["absent"][0] == (4,)
        assert "rollout 2 said nothing" in found["absent"][1]


def test_one_process_may_train_and_sample():
    parts = given_parts(WHOLE)
    member = Member(host="h", gives=parts, takes=taken_parts(None))
    channel = WeightChannel.open(Meeting(dist.HashStore(), 0, ["both"]), member)
    packed = channel.pack(3, {name: [value] for name, value in WHOLE.items()})
    update = channel.exchange(3, packed, deadline_s=5)
    assert all(torch.equal(got, WHOLE[name].bfloat16()) for name, got in update.whole())
    assert (update.version, update.bill.sent_bytes) == (3, 0)
    assert update.bill.local_bytes == 2 * ELEMENTS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_on_a_device_are_taken_on_a_device():
    given = {name: value.cuda() for name, value in WHOLE.items()}
    member = Member(host="h", gives=given_parts(WHOLE), takes=taken_parts(None))
    channel = WeightChannel.open(
        Meeting(dist.HashStore(), 0, ["both"]), member, device=torch.device("cuda")
    )
    update = channel.exchange(1, {n: [v] for n, v in given.items()}, deadline_s=5)
    assert all(torch.equal(got.cpu(), WHOLE[name].bfloat16()) for name, got in update.whole())


def _abandoned(rank: int, port: int) -> object:
    store, names = store_of(rank, port), NAMES[1:3]
    whole = {"w": Part(shape=(4,), dtype="float32", blocks=(Block((0,), (4,)),))}
    member = Member(host="t", gives=whole) if rank == 0 else Member(host="r", takes=whole)
    channel = WeightChannel.open(Meeting(store, rank, names, "first"), member)
    dist.barrier()
    if rank == 0:
        beside = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        why = {"transfers": 1, "reason": "another is opened"}
        threading.Timer(0.2, abandon, (beside, "first"), why).start()
        began_s = time.monotonic()
        # The other rank says nothing: it might as well be gone.
        with pytest.raises(WeightTransferError, match="rollout 0 said nothing"):
            channel.publish(1, {"w": [torch.ones(4)]}, deadline_s=60)
        threading.Timer(0.2, abandon, (beside, "alone"), why).start()
        with pytest.raises(WeightTransferError, match="rollout 0 said nothing"):
            WeightChannel.open(Meeting(store, rank, names, "alone"), member)
        found = time.monotonic() - began_s
    dist.barrier()
    if rank == 1:
        with pytest.raises(WeightTransferError):
            channel.subscribe(deadline_s=60)
    again = WeightChannel.open(Meeting(store, rank, names, "second"), member)
    if rank == 0:
        again.publish(2, {"w": [torch.ones(4)]}, deadline_s=20)
    else:
        found = again.subscribe(deadline_s=20).version
    leave_together(rank, store, 2)
    return found


def test_an_abandoned_channel_ends_at_once_for_all_that_wait_in_it():
    seconds, version = run_on_ranks(2, _abandoned, free_port())
    assert (seconds < 15.0, version) == (True, 2)
