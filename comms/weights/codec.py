"""Members of a channel and shares of its plan as JSON text, and back. Pure but for JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comms.weights.blocks import Block
from comms.weights.plan import Member, Message, Part, Piece, Plan


def member_text(member: Member) -> str:
    """What `read_member` reads."""
    return json.dumps(
        {"host": member.host, "gives": _parts(member.gives), "takes": _parts(member.takes)}
    )


def read_member(text: str | bytes) -> Member:
    """The member that `member_text` wrote."""
    plain = json.loads(text)
    return Member(
        host=plain["host"], gives=_read_parts(plain["gives"]), takes=_read_parts(plain["takes"])
    )


def share_text(plan: Plan, rank: int) -> str:
    """The part of a plan that `rank` carries out: what it sends, receives and copies."""
    rounds = [[m for m in one if rank in (m.sender, m.receiver)] for one in plan.rounds]
    return json.dumps({"dtypes": plan.dtypes, "rounds": rounds, "local": plan.local.get(rank, ())})


def read_share(text: str | bytes, rank: int) -> Plan:
    """The plan as far as it concerns `rank`, from what `share_text` wrote."""
    plain = json.loads(text)
    return Plan(
        dtypes=plain["dtypes"],
        rounds=tuple(tuple(_read_message(m) for m in one) for one in plain["rounds"]),
        local={rank: tuple(_read_piece(piece) for piece in plain["local"])},
    )


def _parts(parts: Mapping[str, Part]) -> dict[str, Any]:
    return {name: [part.shape, part.dtype, part.blocks] for name, part in parts.items()}


def _read_parts(plain: Mapping[str, Any]) -> dict[str, Part]:
    return {
        name: Part(
            shape=tuple(shape), dtype=dtype, blocks=tuple(_read_block(block) for block in blocks)
        )
        for name, (shape, dtype, blocks) in plain.items()
    }


def _read_block(plain: Sequence[Any]) -> Block:
    return Block(tuple(plain[0]), tuple(plain[1]))


def _read_piece(plain: Sequence[Any]) -> Piece:
    return Piece(plain[0], _read_block(plain[1]), plain[2])


def _read_message(plain: Sequence[Any]) -> Message:
    sender, receiver, pieces, payload_bytes = plain
    return Message(sender, receiver, tuple(map(_read_piece, pieces)), payload_bytes)
