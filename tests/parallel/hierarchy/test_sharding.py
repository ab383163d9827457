"""Any widths train as one process does, hold the bytes of the formula and send those of it."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from comms.ledger import Ledger
from parallel.hierarchy.sharding import HierarchicalSharding
from parallel.hierarchy.shards import cut_dim
from parallel.hierarchy.volume import held_bytes, step_bytes
from parallel.hierarchy.widths import Widths
from tests.parallel.hierarchy.odd import (
    Odd,
    every_width,
    odd_model,
    own_part,
    tokens,
    trained_alone,
)
from tests.ranks import run_on_ranks

STEPS, ROUNDS = 3, 2


def _train(sharding, model, optimizer, rank):
    for step in range(STEPS):
        for number in range(ROUNDS):
            sharding.gradients.start_round(last=number == ROUNDS - 1)
            model(tokens(rank, number, step)).backward()
        sharding.gradients.finish()
        optimizer.step()
        sharding.publish()
        sharding.gradients.zero()


def _spread(widths, ledger, **options):
    model = odd_model()
    sharding = HierarchicalSharding(
        model, blocks=list(model.blocks), widths=widths, ledger=ledger, **options
    )
    return model, sharding, torch.optim.AdamW(sharding.parameters(), lr=1e-2, fused=True)


def _held(model, sharding, optimizer) -> dict[str, int]:
    """Bytes of the memory behind what a rank keeps."""
    locals_ = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    moments = [
        state[moment].to_local()
        for state in optimizer.state.values()
        for moment in ("exp_avg", "exp_avg_sq")
    ]
    return {
        "weights": sum(local.untyped_storage().nbytes() for local in locals_),
        "gradients": sharding.gradients.held_bytes,
        "masters": sum(group.master_S.untyped_storage().nbytes() for group in sharding.groups),
        "moments": sum(moment.untyped_storage().nbytes() for moment in moments),
    }


def _all_widths(rank: int, ranks: int) -> None:
    reference = dict(trained_alone(ranks, steps=STEPS, rounds=ROUNDS).named_parameters())
    for widths in every_width(ranks):
        ledger = Ledger()
        model, sharding, optimizer = _spread(widths, ledger)
        _train(sharding, model, optimizer, rank)
        sent, _ = ledger.take()
        shapes = [group.shape for group in sharding.groups]
        wanted = step_bytes(
            shapes, widths, data_ranks=ranks, rounds=ROUNDS, param_bytes=4, quantized=False
        )
        assert sent == {name: STEPS * count for name, count in wanted.items()}, widths
        place = [sharding.mesh.get_local_rank(axis) for axis in sharding.mesh.mesh_dim_names[1:]]
        assert _held(model, sharding, optimizer) == held_bytes(
            shapes, widths, place, param_bytes=4
        ), widths
        masters = dict(sharding.named_parameters())
        assert masters.keys() == {n for n, p in reference.items() if p.requires_grad}
        for name, weight in model.named_parameters():
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            torch.testing.assert_close(whole, reference[name], rtol=1e-5, atol=1e-6)
            if name in masters:
                local = masters[name].to_local()
                torch.testing.assert_close(
                    local, own_part(reference[name], masters[name]), rtol=1e-5, atol=1e-6
                )
            else:
                assert torch.equal(whole, odd_model().get_parameter(name))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_widths_train_as_one_process_and_match_the_formulas(ranks):
    assert len(run_on_ranks(ranks, _all_widths, ranks)) == ranks


def _fsdp2(rank: int, ranks: int, dtype: torch.dtype) -> Odd:
    model = odd_model()
    mesh = init_device_mesh("cpu", (ranks,))
    widths = Widths(weights=ranks, gradients=ranks, optimizer=ranks)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model.blocks, model):
        # The same dims as ours, since a sum over other parts may round otherwise.
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            shard_placement_fn=lambda p: Shard(cut_dim(p.shape, widths)),
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for step in range(STEPS):
        for number in range(ROUNDS):
            model(tokens(rank, number, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _beside_fsdp2(rank: int, ranks: int, dtype: torch.dtype) -> dict[str, bool]:
    plain = dict(_fsdp2(rank, ranks, dtype).named_parameters())
    widths = Widths(weights=ranks, gradients=ranks, optimizer=ranks)
    model, sharding, optimizer = _spread(widths, Ledger(), param_dtype=dtype)
    _train(sharding, model, optimizer, rank)
    equal = {
        n: torch.equal(p.to_local(), plain[n].to_local()) for n, p in sharding.named_parameters()
    }
    for name, weight in model.named_parameters():
        rounded = plain[name].to_local().to(dtype)
        equal[f"weight {name}"] = torch.equal(weight.to_local(), rounded)
    return equal


@pytest.mark.parametrize(("ranks", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_one_width_for_all_is_fsdp2_to_the_bit(ranks, dtype):
    for equal in run_on_ranks(ranks, _beside_fsdp2, ranks, dtype):
        assert all(equal.values()), equal
        assert len(equal) > 20


def _keeps_masters(rank: int) -> None:
    whole = dict(odd_model().named_parameters())
    for widths in (
        Widths(weights=1, gradients=1, optimizer=2),
        Widths(weights=2, gradients=2, optimizer=2),
    ):
        model, sharding, _ = _spread(widths, Ledger(), param_dtype=torch.bfloat16)
        for name, master in sharding.named_parameters():
            assert master.dtype == torch.float32
            assert torch.equal(master.to_local(), own_part(whole[name], master))
        before = {n: _whole(p).clone() for n, p in model.named_parameters()}
        sharding.publish()
        for name, weight in model.named_parameters():
            assert torch.equal(_whole(weight), before[name])
            assert torch.equal(_whole(weight), whole[name].bfloat16())


def _whole(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def _from_meta(rank: int) -> None:
    for widths in (
        Widths(weights=1, gradients=2, optimizer=2),
        Widths(weights=2, gradients=2, optimizer=2),
    ):
        with torch.device("meta"):
            model = Odd()
        sharding = HierarchicalSharding(model, blocks=list(model.blocks), widths=widths)
        with pytest.raises(RuntimeError, match=r"embed.weight .* on meta; .*to_empty"):
            _ = sharding.gradients
        model.to_empty(device="cpu")
        whole = dict(odd_model().named_parameters())
        for name, weight in model.named_parameters():
            part = own_part(whole[name], weight) if isinstance(weight, DTensor) else whole[name]
            with torch.no_grad():
                (weight.to_local() if isinstance(weight, DTensor) else weight).copy_(part)
        sharding.adopt()
        for name, master in sharding.named_parameters():
            assert torch.equal(master.to_local(), own_part(whole[name], master))
        _train(sharding, model, torch.optim.AdamW(sharding.parameters(), lr=1e-2, fused=True), rank)
        trained = dict(trained_alone(2, steps=STEPS, rounds=ROUNDS).named_parameters())
        for name, master in sharding.named_parameters():
            wanted = own_part(trained[name], master)
            torch.testing.assert_close(master.to_local(), wanted, rtol=1e-5, atol=1e-6)


def _refusals(rank: int) -> None:
    scalar = torch.nn.Linear(2, 2)
    scalar.temperature = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"temperature has no dims; give it the shape \(1,\)"):
        HierarchicalSharding(scalar, blocks=[], widths=Widths())
    spread = torch.nn.Linear(2, 2)
    fully_shard(spread, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="weight is spread already"):
        HierarchicalSharding(spread, blocks=[], widths=Widths())
    with pytest.raises(ValueError, match="optimizer=4 does not divide data ranks=2"):
        HierarchicalSharding(odd_model(), blocks=[], widths=Widths(optimizer=4))


def _two_ranks(rank: int) -> bool:
    _keeps_masters(rank)
    _from_meta(rank)
    _refusals(rank)
    return True


def test_masters_keep_fp32_meta_models_are_adopted_and_bad_input_is_refused():
    assert run_on_ranks(2, _two_ranks) == [True, True]
