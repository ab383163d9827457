"""What the first rank that trains hands to the others, as bytes: JSON and safetensors, no pickle.

Guarantee, asserted in tests/trainer/rl/test_codec.py: decoding what was encoded gives an equal
order, its numbers bitwise.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from trainer.rl.messages import ChannelPlace, Publish, Sample, TrainOn

PER_TOKEN = {
    "tokens": np.int32,
    "loss_mask": np.int8,
    "log_probs": np.float32,
    "model_log_probs": np.float32,
    "versions": np.int32,
}
OPTIONAL = {"reference_log_probs": np.float32, "routing": np.int16}
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Pause:
    """Nothing yet: the others hear that the first rank still waits."""


@dataclass(frozen=True)
class Stop:
    """The run was asked to stop."""


Order: TypeAlias = TrainOn | Publish | Pause | Stop


def encode_order(order: Order) -> bytes:
    """The order as bytes."""
    match order:
        case TrainOn():
            return _with_samples(order)
        case Publish():
            return _joined({"kind": "publish", "channel": asdict(order.channel)}, b"")
        case Pause():
            return _joined({"kind": "pause"}, b"")
        case Stop():
            return _joined({"kind": "stop"}, b"")


def decode_order(payload: bytes) -> Order:
    """The order that was encoded."""
    size = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    header = json.loads(payload[_LENGTH_BYTES : _LENGTH_BYTES + size])
    match header["kind"]:
        case "train_on":
            return _samples_of(header, payload[_LENGTH_BYTES + size :])
        case "publish":
            channel = header["channel"]
            return Publish(channel=ChannelPlace(**{**channel, "names": tuple(channel["names"])}))
        case "pause":
            return Pause()
        case _:
            return Stop()


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + body


def _with_samples(order: TrainOn) -> bytes:
    samples = order.samples
    tensors = {name: _column(samples, name, dtype) for name, dtype in PER_TOKEN.items()}
    holders: dict[str, list[int]] = {}
    for name, dtype in OPTIONAL.items():
        holders[name] = [i for i, s in enumerate(samples) if getattr(s, name) is not None]
        if holders[name]:
            tensors[name] = _column([samples[i] for i in holders[name]], name, dtype)
    header = {
        "kind": "train_on",
        "version": order.version,
        "pairs": order.pairs,
        "figures": dict(order.figures),
        "lengths": [sample.num_tokens for sample in samples],
        "samples": [(s.advantage, s.reward, s.group) for s in samples],
        "holders": holders,
    }
    return _joined(header, save(tensors))


def _column(samples: Sequence[Sample], name: str, dtype: type) -> NDArray:
    arrays: list[NDArray] = [np.asarray(getattr(sample, name), dtype=dtype) for sample in samples]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _samples_of(header: dict[str, Any], body: bytes) -> TrainOn:
    tensors, lengths = load(body), header["lengths"]
    everybody = range(len(lengths))
    columns = {name: _cut(tensors[name], everybody, lengths) for name in PER_TOKEN}
    columns |= {
        # The last token of an episode was never put in, so it visited no expert.
        name: _cut(tensors[name], owners, [lengths[i] - (name == "routing") for i in owners])
        for name, owners in header["holders"].items()
        if owners
    }
    return TrainOn(
        version=header["version"],
        samples=tuple(
            Sample(
                **{name: found[i] for name, found in columns.items() if i in found},
                advantage=advantage,
                reward=reward,
                group=group,
            )
            for i, (advantage, reward, group) in enumerate(header["samples"])
        ),
        pairs=tuple((chosen, rejected) for chosen, rejected in header["pairs"]),
        figures=header["figures"],
    )


def _cut(column: NDArray, owners: Sequence[int], lengths: Sequence[int]) -> dict[int, NDArray]:
    """Each owner's stretch of a column."""
    if not owners:
        return {}
    return dict(zip(owners, np.split(column, np.cumsum(lengths)[:-1]), strict=True))
