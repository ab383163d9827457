import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from offload.disk.files import DiskFailure
from offload.optimizer import InterleavedAdamW
from tests.disks import files_up_to

STEPS = 50


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(37, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 61))
    return model.to(dtype)


def groups_of(model):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def backward(model, generator, rounds=1):
    dtype = next(model.parameters()).dtype
    for _ in range(rounds):
        model(torch.randn(8, 37, generator=generator).to(dtype)).float().square().mean().backward()


def train(optimizer, model, steps=STEPS, rounds=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(steps):
        backward(model, generator, rounds)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return [p.detach().clone() for p in model.parameters()]


def ours(model, **options):
    options = {"lr": 1e-2, "subgroup_parameters": 2048, **options}
    return InterleavedAdamW(groups_of(model), **options)


def reference(rounds=1):
    model = model_of()
    return train(torch.optim.AdamW(groups_of(model), lr=1e-2, fused=True), model, rounds=rounds)


def same(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("subgroup_parameters", [1024, 5000, 10_000_000])
@pytest.mark.parametrize("stream_gradients", [True, False])
def test_in_memory_the_bits_are_those_of_adamw(subgroup_parameters, stream_gradients):
    model = model_of()
    optimizer = ours(
        model, subgroup_parameters=subgroup_parameters, stream_gradients=stream_gradients
    )
    assert same(train(optimizer, model, rounds=3), reference(rounds=3))
    assert optimizer.last_update.disk_subgroups == 0


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("disk_share", [0.4, 1.0])
def test_on_disk_the_bits_are_those_of_adamw(tier, overlap, disk_share):
    model = model_of()
    optimizer = ours(model, disk=tier, disk_share=disk_share, overlap=overlap)
    assert same(train(optimizer, model), reference())
    stats = optimizer.last_update
    assert stats.disk_subgroups == round(disk_share * (stats.disk_subgroups + stats.host_subgroups))
    assert stats.disk_read_bytes > 0
    assert stats.disk_written_bytes > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_have_fp32_masters(tier, dtype):
    found = []
    for options in ({}, {"disk": tier}, {"disk": tier, "overlap": False}):
        model = model_of(dtype)
        optimizer = ours(model, **options)
        found.append(train(optimizer, model))
        for entry, weight in zip(
            optimizer.state_dict()["state"].values(), optimizer._weights.parameters, strict=True
        ):
            assert entry["master"].dtype == torch.float32
            assert torch.equal(entry["master"].to(dtype), weight)
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    # Steps of 1e-6 of a weight vanish in bf16 and fp16, but not in the master.
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-8
    before = copy.deepcopy(optimizer.state_dict()["state"][0]["master"])
    backward(model, torch.Generator().manual_seed(5))
    optimizer.step()
    assert not torch.equal(optimizer.state_dict()["state"][0]["master"], before)


def test_clipping_inside_the_update_equals_clipping_before_it():
    one, other = model_of(), model_of()
    clipped = torch.optim.AdamW(groups_of(one), lr=1e-2, fused=True)
    optimizer = ours(other)
    for step in range(10):
        for model in (one, other):
            backward(model, torch.Generator().manual_seed(step))
        norm = nn.utils.clip_grad_norm_(one.parameters(), 0.01)
        assert float(optimizer.squared_norm().sqrt()) == pytest.approx(float(norm), rel=1e-5)
        clipped.step()
        optimizer.step(grad_scale=float(0.01 / (norm + 1e-6)))
        clipped.zero_grad()
    # One rounding of the scale per step, amplified by Adam where gradients are tiny.
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_non_finite_gradient_changes_nothing(tier, on_disk):
    model = model_of()
    optimizer = ours(model, disk=tier if on_disk else None)
    train(optimizer, model, steps=2)
    before = [p.detach().clone() for p in model.parameters()]
    state = optimizer.state_dict()["state"]
    backward(model, torch.Generator().manual_seed(3))
    model[3].weight.register_hook(lambda grad: grad * float("nan"))
    backward(model, torch.Generator().manual_seed(3))
    with pytest.raises(FloatingPointError, match=r"parameters \[1\] \(of 1\) are not finite"):
        optimizer.step()
    optimizer.zero_grad()
    assert same(before, model.parameters())
    for old, new in zip(state.values(), optimizer.state_dict()["state"].values(), strict=True):
        assert same(old.values(), new.values())


def test_a_skipped_step_leaves_no_trace(tier):
    model = model_of()
    optimizer = ours(model, disk=tier)
    first = train(optimizer, model, steps=1)
    backward(model, torch.Generator().manual_seed(9))
    optimizer.zero_grad()
    assert same(first, model.parameters())
    other = model_of()
    plain = ours(other)
    train(plain, other, steps=1)
    for m, o in ((model, optimizer), (other, plain)):
        backward(m, torch.Generator().manual_seed(10))
        o.step()
    assert same(model.parameters(), other.parameters())


def test_parameters_without_gradient_are_left_alone():
    models = model_of(), model_of()
    optimizers = ours(models[0]), torch.optim.AdamW(groups_of(models[1]), lr=1e-2, fused=True)
    for model, optimizer in zip(models, optimizers, strict=True):
        model[0].requires_grad_(False)
        train(optimizer, model, steps=3)
        model[0].requires_grad_(True)
        train(optimizer, model, steps=3)
    assert same(models[0].parameters(), models[1].parameters())


@pytest.mark.parametrize("disk_share", [0.5, 1.0])
def test_a_disk_that_refuses_writes_leaves_the_weights_of_the_last_step(tier, disk_share):
    model = model_of()
    optimizer = ours(model, disk=tier, disk_share=disk_share, buffers=2)
    before = train(optimizer, model, steps=3)
    backward(model, torch.Generator().manual_seed(3))
    with files_up_to(0), pytest.raises(DiskFailure, match="cannot write"):
        optimizer.step()
    assert same(before, model.parameters())
    for refused in (optimizer.step, optimizer.state_dict):
        with pytest.raises(RuntimeError, match="start again from the last checkpoint"):
            refused()
    optimizer.close()


def test_a_disk_that_vanishes_leaves_the_weights_of_the_last_step(tier):
    model = model_of()
    optimizer = ours(model, disk=tier, buffers=2)
    before = train(optimizer, model, steps=3)
    for file in tier._files:
        os.truncate(Path(f"/proc/self/fd/{file._fd}"), 0)
    backward(model, torch.Generator().manual_seed(3))
    with pytest.raises(DiskFailure, match="truncated"):
        optimizer.step()
    assert same(before, model.parameters())


@pytest.mark.parametrize("on_disk", [True, False])
def test_states_go_to_adamw_and_come_from_it(tier, on_disk):
    target = reference()
    disk = tier if on_disk else None
    model, half = model_of(), model_of()
    adamw = torch.optim.AdamW(groups_of(model), lr=1e-2, fused=True)
    train_range(adamw, model, 0, 20)
    optimizer = ours(half, disk=disk)
    half.load_state_dict(model.state_dict())
    optimizer.load_state_dict(adamw.state_dict())
    train_range(optimizer, half, 20, 35)
    last = model_of()
    last.load_state_dict(half.state_dict())
    adamw = torch.optim.AdamW(groups_of(last), lr=1.0, fused=True)
    adamw.load_state_dict(optimizer.state_dict())
    train_range(adamw, last, 35, STEPS)
    expected = model_of()
    train_range(torch.optim.AdamW(groups_of(expected), lr=1e-2, fused=True), expected, 0, STEPS)
    assert same(last.parameters(), expected.parameters())
    assert not same(last.parameters(), target)


def train_range(optimizer, model, first, last):
    for step in range(first, last):
        backward(model, torch.Generator().manual_seed(step))
        optimizer.step()
        optimizer.zero_grad()


def test_loading_twice_as_the_same_class_keeps_every_bit(tier):
    model = model_of(torch.bfloat16)
    optimizer = ours(model, disk=tier, disk_share=0.5)
    train_range(optimizer, model, 0, 5)
    copied = model_of(torch.bfloat16)
    copied.load_state_dict(model.state_dict())
    other = ours(copied, subgroup_parameters=4096)
    other.load_state_dict(optimizer.state_dict())
    train_range(optimizer, model, 5, 10)
    train_range(other, copied, 5, 10)
    assert same(model.parameters(), copied.parameters())
    for a, b in zip(
        optimizer.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
    ):
        assert same(a.values(), b.values())


def test_what_cannot_be_done_is_refused():
    model = model_of()
    optimizer = ours(model)
    with pytest.raises(ValueError, match="cannot be added"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(ValueError, match="share must be between 0 and 1, got 2"):
        InterleavedAdamW(model.parameters(), share=2.0)
    amsgrad = torch.optim.AdamW(groups_of(model), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad=True is not offered"):
        optimizer.load_state_dict(amsgrad.state_dict())
    with pytest.raises(ValueError, match="parameter groups of"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
