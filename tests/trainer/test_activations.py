"""Activations of a decoder follow the text of a plan."""

import pytest
import torch

from offload.activations.disk_store import DiskStore
from offload.activations.engine import ActivationSwap
from offload.activations.policy import KEEP, SELECTIVE
from offload.activations.records import SwapOptions
from offload.disk.tier import DiskTier
from tests.trainer.model.batches import make_batch
from trainer.activations import Activations
from trainer.errors import InfrastructureError
from trainer.model.activation_size import BlockCost
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.planner.activations import ActivationRoom, TierRoom

ARCHITECTURE = Architecture(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
)
BLOCK = BlockCost(
    input_bytes=1.0, attention_bytes=1.0, other_bytes=1.0, flops=1.0, tokenwise_flops=1.0
)
ROOM = ActivationRoom(
    block=BLOCK,
    blocks=3,
    device_bytes=1,
    tier=TierRoom(tier="disk", num_bytes=1, bytes_per_s=1e6),
)


def decoder():
    model = Decoder(ARCHITECTURE)
    init_weights(model, 0)
    return model


def disk_swap(folder, timeout_s=60.0, **options):
    tier = DiskTier([folder], capacity_bytes=16 << 20, depth=1)
    store = DiskStore(tier, buffers=2, piece_bytes=1 << 16, timeout_s=timeout_s, closes_tier=True)
    return ActivationSwap(store, SwapOptions(min_bytes=1, **options), device=torch.device("cpu"))


def step(model, batch):
    model.zero_grad()
    parts = model(batch)
    parts.loss_sum.backward()
    return [parts.loss_sum.detach(), *(p.grad for p in model.parameters())]


def test_every_policy_gives_the_same_bits_and_may_change_each_step(tmp_path):
    model, batch = decoder(), make_batch([[70, 40]], 61)
    wanted = step(model, batch)
    activations = Activations(model, tier="disk", swap=disk_swap(tmp_path), room=ROOM)
    stored = {}
    for text in ("swap(0.5) to disk", "keep", "selective", "recompute", "swap(1) to disk"):
        activations.follow(text)
        assert all(map(torch.equal, step(model, batch), wanted)), text
        with torch.no_grad():
            model(batch)
        moved = activations.take_movement()
        stored[text] = moved.stored_bytes
        assert moved.fetched_bytes <= moved.stored_bytes
        assert (moved.recomputed_bytes > 0) == (text in ("swap(0.5) to disk", "selective"))
        assert (moved.saved_bytes > 0) == (text not in ("keep", "recompute"))
        assert moved.transfer_s == (moved.stored_bytes + moved.fetched_bytes) / 1e6
    assert 0 < stored["swap(0.5) to disk"] < stored["swap(1) to disk"]
    assert stored["keep"] == stored["selective"] == stored["recompute"] == 0
    activations.close()
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_was_not_prepared_for_is_refused():
    activations = Activations(decoder())
    activations.follow(str(KEEP))
    for text in (str(SELECTIVE), "swap(0.5) to disk"):
        with pytest.raises(ValueError, match="keeps blocks or runs them again whole"):
            activations.follow(text)
    with pytest.raises(ValueError, match="no activation policy is called 'swop'"):
        activations.follow("swop")
    assert activations.take_movement() is None


def test_a_disk_that_fails_ends_the_step_and_leaves_the_weights(tmp_path):
    model, batch = decoder(), make_batch([[70, 40]], 61)
    before = [p.detach().clone() for p in model.parameters()]
    late = disk_swap(tmp_path, timeout_s=1e-9, prefetch_bytes=1, max_in_flight_bytes=1)
    activations = Activations(model, tier="disk", swap=late, room=ROOM)
    activations.follow("swap(1) to disk")
    with (
        pytest.raises(InfrastructureError, match=r"step 4 could not move.*no answer to a"),
        activations.watched(4),
    ):
        step(model, batch)
    assert all(map(torch.equal, model.parameters(), before))


def test_what_the_tier_has_no_room_for_stays(tmp_path):
    model, batch = decoder(), make_batch([[70, 40]], 61)
    wanted = step(model, batch)
    tier = DiskTier([tmp_path], capacity_bytes=65536, depth=1, stripe_bytes=4096)
    store = DiskStore(tier, buffers=2, piece_bytes=4096, closes_tier=True)
    options = SwapOptions(min_bytes=1, keep_when_full=True)
    swap = ActivationSwap(store, options, device=torch.device("cpu"))
    activations = Activations(model, tier="disk", swap=swap, room=ROOM)
    for text in ("swap(1) to disk", "swap(0.5) to disk"):
        activations.follow(text)
        assert all(map(torch.equal, step(model, batch), wanted)), text
        assert 0 < activations.take_movement().stored_bytes <= 65536
    activations.close()
