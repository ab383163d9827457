"""A mixture layer whose experts are spread over ranks equals the layer on one rank."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.hosts import host_groups
from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch
from trainer.model.config import MoeConfig
from trainer.model.moe import MoeFeedForward
from trainer.model.packing import Packing, SequenceWeights, sequence_weights

WIDTH, TOKENS, RANKS = 16, 12, 4
MOE = MoeConfig(
    num_experts=8,
    top_k=2,
    expert_intermediate_size=12,
    shared_intermediate_size=8,
    aux_loss_weight=0.1,
    z_loss_weight=0.01,
)
VARIANTS = {
    "plain": MOE,
    "narrow": replace(MOE, dispatch_size=4),
    "residual, bounded": replace(MOE, residual=True, capacity_factor=0.5),
}


def make_moe(moe):
    module = MoeFeedForward(WIDTH, moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def hidden(rank):
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(rank))


def packing_of(ranks):
    batch = make_batch([[TOKENS - 2, -2]] * ranks, 50)
    return Packing(document_ends=batch.document_ends, sequences=sequence_weights(batch))


def results(module, x_TD, packing, *, recompute):
    x_TD.requires_grad_(True)
    if recompute:
        y_TD, stats = checkpoint(module, x_TD, packing, use_reentrant=False)
    else:
        y_TD, stats = module(x_TD, packing)
    (y_TD.square().sum() + stats.aux).backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    return y_TD.detach(), x_TD.grad, stats.aux.detach(), stats.dropped, grads


def spread_layer(rank, staged, recompute):
    hosts = host_groups([range(RANKS)], ranks_per_host=2) if staged else None
    found = {}
    for name, moe in VARIANTS.items():
        module, each = make_moe(moe), MOE.num_experts // RANKS
        for stacked, parameter in list(module.experts.named_parameters()):
            own = parameter.detach()[rank * each : (rank + 1) * each].clone()
            module.experts.register_parameter(stacked, torch.nn.Parameter(own))
        module.experts.exchange = ExpertDispatch(
            dist.group.WORLD, num_experts=MOE.num_experts, ledger=Ledger(), hosts=hosts
        )
        found[name] = results(module, hidden(rank), packing_of(1), recompute=recompute)
    return found


@pytest.mark.parametrize(("staged", "recompute"), [(False, False), (True, True)])
def test_the_spread_layer_equals_the_layer_on_one_rank(staged, recompute):
    found = run_on_ranks(RANKS, spread_layer, staged, recompute)
    for name, moe in VARIANTS.items():
        x_TD = torch.cat([hidden(rank) for rank in range(RANKS)])
        wanted = results(make_moe(moe), x_TD, packing_of(RANKS), recompute=False)
        parts = [result[name] for result in found]
        for i in range(2):
            torch.testing.assert_close(torch.cat([p[i] for p in parts]), wanted[i])
        for i in range(2, 4):
            torch.testing.assert_close(torch.stack([p[i] for p in parts]).sum(), wanted[i])
        for parameter, gradient in wanted[4].items():
            own = [p[4][parameter] for p in parts]
            whole = torch.cat(own) if ".experts." in f".{parameter}" else torch.stack(own).sum(0)
            torch.testing.assert_close(whole, gradient, rtol=1e-4, atol=1e-5)


def shared_sequence(rank):
    """Two ranks hold every other token of one sequence."""
    module, x_TD = make_moe(MOE), hidden(0)
    mine = slice(rank, None, 2)
    tokens = TOKENS // 2

    def over_ranks(values):
        dist.all_reduce(values)
        return values

    sequences = SequenceWeights(
        mean_ST=torch.full((1, tokens), 1 / TOKENS),
        targets_S=torch.tensor([float(TOKENS - 1)]),
        real_T=torch.ones(tokens),
        sum_over_group=over_ranks,
    )
    _, stats = module(x_TD[mine], Packing(document_ends=(tokens,), sequences=sequences))
    stats.aux.backward()
    return stats.aux.detach(), stats.load_E, module.gate.weight.grad


def test_the_parts_of_a_shared_sequence_sum_to_its_auxiliary_loss():
    found = run_on_ranks(2, shared_sequence)
    module = make_moe(MOE)
    batch = make_batch([[TOKENS]], 50)
    packing = Packing(document_ends=(TOKENS,), sequences=sequence_weights(batch))
    _, stats = module(hidden(0), packing)
    stats.aux.backward()
    wanted = (stats.aux.detach(), stats.load_E, module.gate.weight.grad)
    for parts, whole in zip(zip(*found, strict=True), wanted, strict=True):
        torch.testing.assert_close(parts[0] + parts[1], whole)
