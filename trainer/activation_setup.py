"""Find room for what a recipe wants of activations, before anything takes it.

Guarantees, each asserted in tests/trainer/test_activation_setup.py:
- `auto` opens nothing where all activations fit;
- all ranks choose from the same policies, with the same tier and as much room on it.
"""

from dataclasses import dataclass, replace

import torch

from comms.config import RankEnvironment
from comms.groups import device_of
from offload.activations.disk_store import PIECE_BYTES
from offload.activations.policy import Kind, Tier
from offload.disk.speed import DEPTHS
from offload.disk.tier import STRIPE_BYTES
from offload.host_memory import HostLimits, RankNeed, read_limits
from parallel.fit import stages_per_rank
from parallel.layout import Layout
from trainer.activation_plan import (
    ActivationWish,
    device_room_bytes,
    host_room_bytes,
    need_of_tier,
    tier_room_bytes,
    waiting_rounds,
    wanted_tier_bytes,
    wish_of,
)
from trainer.config import JobConfig
from trainer.errors import RecipeError
from trainer.memory import device_capacity_bytes
from trainer.model.activation_size import block_cost, mean_cost
from trainer.model.config import Architecture
from trainer.model.size import parameter_count
from trainer.planner.activations import ActivationRoom, TierRoom, weigh
from trainer.planner.batch import batch_of
from trainer.spread import pipeline_shape
from trainer.state_plan import NOTHING
from trainer.together import least, on_all_ranks

LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class ActivationSetup:
    """What was found out before anything is opened; the same on all ranks but for limits."""

    wish: ActivationWish
    kinds: tuple[Kind, ...]
    room: ActivationRoom | None = None
    """Without a rate of its tier; None where the recipe leaves nothing to choose."""

    tokens: int = 0
    """Most tokens of a rank in a round."""

    need: RankNeed = NOTHING
    """Host memory and disk that opening takes."""


def set_up_activations(
    config: JobConfig,
    architecture: Architecture,
    layout: Layout,
    environment: RankEnvironment,
    *,
    dtype: torch.dtype,
    parameters: int,
) -> ActivationSetup:
    """Find room for what the recipe wants, before optimizer states take theirs. All ranks call it;
    `parameters` are those that this rank updates.

    Raises RecipeError for a swap that has nowhere to go, ResourceError where limits cannot be read.
    """
    on_device = environment.device_type == "cuda"
    try:
        wish = wish_of(config, on_device=on_device)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if wish.kinds in (("keep",), ("recompute",)):
        return ActivationSetup(wish=wish, kinds=wish.kinds)
    limits = on_all_ranks("look at their hosts", lambda: read_limits(disks=wish.disks))
    tokens = config.train.max_tokens_per_device
    room = _room(config, architecture, layout, environment, dtype, parameters, limits)
    room = replace(room, kept_blocks=wish.kept_blocks if layout.pp == 1 else 0)
    setup = ActivationSetup(wish=wish, kinds=wish.kinds, room=room, tokens=tokens)
    if "keep" in wish.kinds:
        keeping = weigh("keep", room, tokens=tokens, flops_per_s=1.0, share=None)
        if keeping.peak_bytes <= room.device_bytes:
            return replace(setup, kinds=("keep",))
    if not wish.tiers:
        return setup
    return _with_tier(setup, config, environment, limits)


def _room(
    config: JobConfig,
    architecture: Architecture,
    layout: Layout,
    environment: RankEnvironment,
    dtype: torch.dtype,
    parameters: int,
    limits: HostLimits,
) -> ActivationRoom:
    """Blocks, and what the smallest rank has for their activations."""
    on_device = environment.device_type == "cuda"
    a, on_host = architecture, environment.local_world_size
    costs = [
        block_cost(
            a,
            layer,
            tp=layout.tp,
            element_bytes=dtype.itemsize,
            fused_norm=on_device,
            context_tokens=config.data.seq_len,
        )
        for layer in range(a.num_layers)
    ]
    # Logits and their gradient, and the weights of two blocks, gathered.
    transient_bytes = 3 * 4 * LOSS_CHUNK_TOKENS * a.vocab_size // layout.tp
    gathered = 2 * parameter_count(a) // a.num_layers // layout.tp
    transient_bytes += gathered * dtype.itemsize if layout.shard > 1 else 0
    if on_device:
        own_bytes = device_room_bytes(
            device_capacity_bytes(device_of(environment), ranks_on_host=on_host),
            parameters=parameters,
            states=config.offload.optimizer,
            transient_bytes=transient_bytes,
        )
    else:
        own_bytes = host_room_bytes(
            limits,
            fraction=config.offload.host_memory_fraction,
            ranks_on_host=on_host,
            parameters=parameters,
            transient_bytes=transient_bytes,
        )
    shape = pipeline_shape(config.parallel, layout) if layout.pp > 1 else None
    rounds = batch_of(config, environment.world_size).rounds
    stages = layout.pp * (stages_per_rank(config.parallel) if layout.pp > 1 else 1)
    return ActivationRoom(
        block=mean_cost(costs),
        blocks=-(-a.num_layers // stages) * (stages // layout.pp),
        waiting=waiting_rounds(shape, rounds),
        device_bytes=int(least(device_bytes=own_bytes)["device_bytes"]),
    )


def _with_tier(
    setup: ActivationSetup, config: JobConfig, environment: RankEnvironment, limits: HostLimits
) -> ActivationSetup:
    """With the first tier that has room for what always leaves, or else the last."""
    wish, room = setup.wish, setup.room
    assert room is not None
    block = room.block.bytes_of(setup.tokens)
    swapped = room.waiting * max(room.blocks - room.kept_blocks, 1)
    stripe_bytes = STRIPE_BYTES * max(len(wish.disks), 1)
    alpha = 1.0 if wish.share is None else wish.share
    most, fewest = (
        wanted_tier_bytes(block.moved_bytes(a), blocks=swapped, stripe_bytes=stripe_bytes)
        for a in (alpha, 0.0)
    )
    chosen: Tier = wish.tiers[-1]
    num_bytes = 0
    for tier in wish.tiers:
        has_bytes = tier_room_bytes(
            tier,
            limits,
            fraction=config.offload.host_memory_fraction,
            ranks_on_host=environment.local_world_size,
        )
        num_bytes = int(least(room=min(most, has_bytes // stripe_bytes * stripe_bytes))["room"])
        chosen = tier
        if num_bytes >= fewest:
            break
    num_bytes = wish.tier_bytes or num_bytes
    return replace(
        setup,
        room=replace(room, tier=TierRoom(tier=chosen, num_bytes=num_bytes, bytes_per_s=1.0)),
        need=need_of_tier(
            chosen,
            num_bytes,
            staging_bytes=2 * _most_depth(wish) * PIECE_BYTES if chosen == "disk" else 0,
            buffers_bytes=2 * block.total_bytes,
            on_device=environment.device_type == "cuda",
        ),
    )


def _most_depth(wish: ActivationWish) -> int:
    return max(DEPTHS) if wish.disk_depth == "auto" else wish.disk_depth
