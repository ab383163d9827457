"""Room for activations is found and opened by all ranks alike, or the run does not start."""

from dataclasses import replace

import torch

from comms.config import RankEnvironment
from offload.config import OffloadConfig
from parallel.config import ParallelConfig
from parallel.layout import Layout
from tests.ranks import run_on_ranks
from trainer.activation_setup import set_up_activations
from trainer.activation_tiers import open_activations
from trainer.config import JobConfig, TrainConfig
from trainer.data.config import DataConfig
from trainer.errors import RecipeError, ResourceError
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.state_plan import NOTHING

ARCHITECTURE = Architecture(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
)
FEW, MANY = 64, 1 << 36
"""Tokens that fit any host, and none."""


def _set_up(rank, offload, tokens, layout, ranks=2, **parallel):
    job = JobConfig(
        data=DataConfig(seq_len=64),
        train=TrainConfig(global_batch_tokens=8 * 64, max_tokens_per_device=tokens),
        offload=offload,
        parallel=ParallelConfig(**parallel),
    )
    return set_up_activations(
        job,
        ARCHITECTURE,
        layout,
        RankEnvironment.on_this_machine(rank, ranks, 0),
        dtype=torch.float32,
        parameters=10_000,
    )


def _attempt(rank, offload):
    try:
        setup = _set_up(rank, offload, FEW, Layout(replica=2))
        with torch.device("cpu"):
            model = Decoder(ARCHITECTURE)
        opened = open_activations(setup, model, RankEnvironment.on_this_machine(rank, 2, 0))
        opened.close()
    except (RecipeError, ResourceError) as error:
        return str(error)
    return opened.room


def _all(rank, disk, below_a_file):
    opened = [
        _attempt(rank, OffloadConfig(**keys))
        for keys in (
            {"activations": "swap", "disk": disk, "disk_depth": 1},
            {"activations": "selective"},
            {"activations": "swap", "disk": below_a_file},
            {"activations": "swap"},
        )
    ]
    layout, two = Layout(replica=2), Layout(pp=2)
    swapping = OffloadConfig(activations="swap", disk=disk)
    found = {
        "fits": _set_up(rank, OffloadConfig(disk=disk), FEW, layout),
        "too_many": _set_up(rank, OffloadConfig(), MANY, layout),
        "too_many_and_a_disk": _set_up(rank, OffloadConfig(disk=disk), MANY, layout),
        "kept": _set_up(rank, OffloadConfig(activations="keep"), MANY, layout),
        "plain": _set_up(rank, swapping, FEW, layout),
        "pipeline": _set_up(rank, swapping, FEW, two, pp=2),
        "told": _set_up(rank, replace(swapping, activation_bytes=1 << 30), FEW, layout),
    }
    return opened, found


def test_all_ranks_find_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    ours, theirs = run_on_ranks(2, _all, str(tmp_path / "disk"), str(tmp_path / "file" / "disk"))
    opened, found = ours
    assert opened == theirs[0]
    for name, setup in found.items():
        assert (setup.kinds, setup.need) == (theirs[1][name].kinds, theirs[1][name].need), name
        if setup.room is not None:
            assert replace(setup.room, device_bytes=0) == replace(
                theirs[1][name].room, device_bytes=0
            )
    swap, selective, refused, nowhere = opened
    assert swap.tier.bytes_per_s > 1e3
    assert selective.tier is None
    assert "ranks could not make room for activations: rank 0" in refused
    assert "activations have nowhere to go" in nowhere
    assert (found["fits"].kinds, found["fits"].need) == (("keep",), NOTHING)
    assert found["too_many"].kinds == ("keep", "selective", "recompute")
    assert found["too_many_and_a_disk"].kinds[-1] == "swap"
    assert found["too_many_and_a_disk"].room.tier.num_bytes > 0
    assert (found["kept"].kinds, found["kept"].room) == (("keep",), None)
    assert found["plain"].need.file_bytes == found["plain"].room.tier.num_bytes
    assert found["plain"].need.pageable_bytes > 0
    assert found["told"].need.file_bytes == 1 << 30
    plain, piped = found["plain"].room, found["pipeline"].room
    assert (plain.blocks, plain.kept_blocks, plain.waiting) == (4, 2, 1)
    assert (piped.blocks, piped.kept_blocks, piped.waiting) == (2, 0, 2)
