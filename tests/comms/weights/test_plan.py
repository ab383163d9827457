"""The guarantees of comms/weights/plan.py, by playing plans on element numbers."""

import random
from collections import defaultdict
from itertools import product

import pytest

from comms.weights.blocks import Block
from comms.weights.codec import member_text, read_member, read_share, share_text
from comms.weights.plan import ITEM_BYTES, Member, Part, Piece, Plan, plan
from comms.weights.transfer import Share


def rows(shape: tuple[int, ...], index: int, ways: int) -> Block:
    """Even slices of dim 0, the last ones shorter."""
    size = -(-shape[0] // ways)
    first = min(index * size, shape[0])
    return Block((first, *(0 for _ in shape[1:])), (min(size, shape[0] - first), *shape[1:]))


def columns(shape: tuple[int, ...], index: int, ways: int) -> Block:
    size = shape[1] // ways
    return Block((0, index * size), (shape[0], size))


def whole(shape: tuple[int, ...]) -> Block:
    return Block((0,) * len(shape), shape)


def parts(shapes: dict[str, tuple[int, ...]], cut, dtype: str = "float32") -> dict[str, Part]:
    return {
        name: Part(shape=shape, dtype=dtype, blocks=(cut(shape),)) for name, shape in shapes.items()
    }


def elements(block: Block) -> list[tuple[int, ...]]:
    return list(product(*(range(f, f + n) for f, n in zip(*block, strict=True))))


def play(members: list[Member], found: Plan) -> tuple[list[dict], dict]:
    """What each rank has in the end, with the number of times; bytes into each host."""
    has = [defaultdict(int) for _ in members]
    for rank, pieces in found.local.items():
        for piece in pieces:
            deliver(piece, members[rank], has[rank], has[rank])
    for one in found.rounds:
        before = [dict(there) for there in has]
        for sender, receiver, pieces, payload_bytes in one:
            size = sum(p.block.elements * ITEM_BYTES[found.dtypes[p.name]] for p in pieces)
            assert size == payload_bytes
            for piece in pieces:
                deliver(piece, members[sender], before[sender], has[receiver])
    return [dict(one) for one in has], found.bytes_into([m.host for m in members])


def deliver(piece: Piece, sender: Member, sender_has: dict, receiver_has: dict) -> None:
    """Give the receiver what the sender gives, or has had since an earlier round."""
    name, block, relayed = piece
    assert relayed or any(block.inside(given) for given in sender.gives[name].blocks)
    for element in elements(block):
        assert not relayed or sender_has[name, element] == 1
        receiver_has[name, element] += 1


def wanted(member: Member) -> set:
    return {(n, e) for n, part in member.takes.items() for b in part.blocks for e in elements(b)}


SHAPES = {"embed": (24, 8), "norm": (7,), "up": (8, 16), "scale": ()}


def flat_rows(index: int, ways: int):
    return lambda shape: rows(shape, index, ways) if shape else whole(shape)


def tensor_parallel(index: int, ways: int):
    return lambda s: columns(s, index, ways) if len(s) == 2 else whole(s)


def layouts() -> list[list[Member]]:
    sharded = [Member(host="t", gives=parts(SHAPES, flat_rows(r, 4))) for r in range(4)]
    # A scalar is of no shard: rank 0 gives it.
    replicas = [Member(host=f"t{r}", gives=parts(SHAPES, whole)) for r in range(3)]
    two = [
        Member(host=f"r{r // 2}", takes=parts(SHAPES, tensor_parallel(r % 2, 2), "bfloat16"))
        for r in range(4)
    ]
    copies = [Member(host=f"r{r // 3}", takes=parts(SHAPES, whole, "bfloat16")) for r in range(6)]
    both = [
        Member(
            host="b",
            gives=parts(SHAPES, flat_rows(r, 2)),
            takes=parts(SHAPES, whole, "bfloat16"),
        )
        for r in range(2)
    ]
    return [sharded + two, sharded + copies, replicas + copies, replicas + two, both, both + copies]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("bucket_bytes", [40, 1 << 20])
def test_everything_arrives_once_and_crosses_into_a_host_once(number, bucket_bytes):
    members = layouts()[number]
    found = plan(members, bucket_bytes=bucket_bytes)
    has, into = play(members, found)
    for member, there in zip(members, has, strict=True):
        assert set(there) == wanted(member)
        assert set(there.values()) <= {1}
    for host, crossed in into.items():
        here = [m for m in members if m.host == host]
        union = set().union(*(wanted(m) for m in here))
        given = {
            (n, e) for m in here for n, p in m.gives.items() for b in p.blocks for e in elements(b)
        }
        assert crossed == 2 * len(union - given)


@pytest.mark.parametrize("number", range(6))
def test_rounds_keep_to_the_bucket(number):
    found = plan(layouts()[number], bucket_bytes=40)
    for one in found.rounds:
        sent, received = defaultdict(int), defaultdict(int)
        for message in one:
            sent[message.sender] += message.payload_bytes
            received[message.receiver] += message.payload_bytes
        assert max(*sent.values(), *received.values()) <= 40


def test_replicas_share_the_sending():
    shapes = {f"layer {i}": (random.Random(i).randint(1, 90), 4) for i in range(40)}
    members = [Member(host=f"t{r}", gives=parts(shapes, whole)) for r in range(4)]
    members += [Member(host=f"r{r}", takes=parts(shapes, whole)) for r in range(3)]
    found = plan(members, bucket_bytes=256)
    sent = defaultdict(int)
    for message in (message for one in found.rounds for message in one):
        sent[message.sender] += message.payload_bytes
    total = 3 * sum(16 * rows for rows, _ in shapes.values())
    assert sum(sent.values()) == total
    assert max(sent.values()) <= total / 4 + 256


def test_no_byte_crosses_hosts_where_one_of_the_host_gives_it():
    members = [
        Member(host="a", gives=parts(SHAPES, whole)),
        Member(host="b", gives=parts(SHAPES, whole)),
    ]
    members += [Member(host="b", takes=parts(SHAPES, whole)) for _ in range(2)]
    found = plan(members, bucket_bytes=1 << 20)
    assert found.bytes_into([m.host for m in members]) == {}
    assert {m.sender for one in found.rounds for m in one} == {1}


def test_a_share_is_the_same_after_json():
    members = layouts()[5]
    again = [read_member(member_text(member)) for member in members]
    assert again == members
    found = plan(again, bucket_bytes=40)
    for rank in range(len(members)):
        part = read_share(share_text(found, rank), rank)
        assert Share.of(part, rank) == Share.of(found, rank)


def test_what_does_not_fit_is_refused():
    giver = Member(host="a", gives=parts(SHAPES, flat_rows(0, 2)))
    taker = Member(host="b", takes=parts(SHAPES, whole))
    with pytest.raises(ValueError, match=r"weight embed: rank 1 takes .* at \[12, 0\] .* no rank"):
        plan([giver, taker], bucket_bytes=64)
    other = Member(host="b", takes=parts(SHAPES, whole, "float16"))
    all_of_it = Member(host="a", gives=parts(SHAPES, whole))
    with pytest.raises(ValueError, match="weight embed is taken as float16, float32"):
        plan([all_of_it, taker, other], bucket_bytes=64)
    wide = Member(host="b", takes=parts(SHAPES | {"embed": (24, 9)}, whole))
    with pytest.raises(ValueError, match=r"weight embed has the shapes \[\(24, 8\), \(24, 9\)\]"):
        plan([all_of_it, wide], bucket_bytes=64)
    with pytest.raises(ValueError, match="bucket_bytes=4 must hold an element"):
        plan([all_of_it], bucket_bytes=4)
