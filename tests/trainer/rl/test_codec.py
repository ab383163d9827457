from dataclasses import fields, replace

import numpy as np
import pytest

from tests.trainer.rl.samples import make_samples
from trainer.rl.codec import Pause, Stop, decode_order, encode_order
from trainer.rl.messages import ChannelPlace, Publish, Sample, TrainOn

CHANNEL = ChannelPlace(host="a", port=7, prefix="p/1", names=("trainer 0", "r"), trainers=1)


def mixed_samples():
    """Some with a reference or routing, some without."""
    plain = make_samples(3, reference=False)
    routed = make_samples(2, routing=(2, 3, 5))
    return (plain[0], routed[0], *plain[1:], replace(routed[1], reference_log_probs=None))


@pytest.mark.parametrize("samples", [mixed_samples(), make_samples(1), ()])
def test_a_batch_comes_out_as_it_went_in(samples):
    order = TrainOn(
        version=4, samples=samples, pairs=((0, 1),) if samples else (), figures={"reward/mean": 0.5}
    )
    found = decode_order(encode_order(order))
    assert isinstance(found, TrainOn)
    assert replace(found, samples=()) == replace(order, samples=())
    assert len(found.samples) == len(samples)
    for got, want in zip(found.samples, samples, strict=True):
        for field in fields(Sample):
            one, other = getattr(got, field.name), getattr(want, field.name)
            if isinstance(other, np.ndarray):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            else:
                assert one == other


@pytest.mark.parametrize("order", [Publish(channel=CHANNEL), Pause(), Stop()])
def test_other_orders_come_out_as_they_went_in(order):
    assert decode_order(encode_order(order)) == order
