"""What `trainer/elastic.py` guarantees, on a mixture layer that trains."""

import torch
import torch.distributed as dist

from comms.ledger import Ledger
from parallel.experts.dispatch import ExpertDispatch
from parallel.experts.placement import Placement, loan_cost_rows
from tests.ranks import run_on_ranks
from tests.trainer.model.batches import make_batch
from trainer.elastic import choose_placements, layers_with_experts, place_experts, placement_of
from trainer.model.config import MoeConfig
from trainer.model.moe import MoeFeedForward
from trainer.model.packing import Packing, sequence_weights

WIDTH, TOKENS, RANKS, STEPS = 16, 20, 2, 5
MOE = MoeConfig(num_experts=6, top_k=2, expert_intermediate_size=12)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MoeFeedForward(WIDTH, MOE)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=generator)
            self.mlp.gate.weight[:3] += 0.5  # the first rank's experts are liked most


def spread(rank):
    layer = Layer()
    experts = layer.mlp.experts
    each = MOE.num_experts // RANKS
    for name, stacked in list(experts.named_parameters()):
        own = stacked.detach()[rank * each : (rank + 1) * each].clone()
        experts.register_parameter(name, torch.nn.Parameter(own))
    experts.exchange = ExpertDispatch(
        dist.group.WORLD, num_experts=MOE.num_experts, ledger=Ledger()
    )
    return layer


def train(rank, placed):
    """Losses of some steps; `placed` says by step what to do before it."""
    layer = spread(rank)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    batch = make_batch([[TOKENS]], 50)
    packing = Packing(document_ends=(TOKENS,), sequences=sequence_weights(batch))
    losses, loads = [], torch.zeros(MOE.num_experts)
    for step in range(STEPS):
        if step in placed:
            change(layer, optimizer, placed[step](loads))
        generator = torch.Generator().manual_seed(100 * step + rank)
        x_TD = torch.randn(TOKENS, WIDTH, generator=generator) + 0.5
        y_TD, stats = layer.mlp(x_TD, packing)
        loss = y_TD.square().mean() + stats.aux
        loss.backward()
        for name, parameter in layer.named_parameters():
            if ".experts." not in name:
                dist.all_reduce(parameter.grad)
        optimizer.step()
        optimizer.zero_grad()
        loads = stats.load_E.clone()
        dist.all_reduce(loads)
        losses.append(loss.item())
    return losses


def change(layer, optimizer, choose):
    layers = layers_with_experts(layer)
    placements = {name: choose(experts) for name, experts in layers.items()}
    parameters = dict(layer.named_parameters())
    moments = {
        kind: {name: optimizer.state[p][kind] for name, p in parameters.items()}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    place_experts(
        layers,
        placements,
        parameters=parameters,
        moments=moments,
        group=dist.group.WORLD,
        ledger=Ledger(),
    )
    for name, experts in layers.items():
        assert placement_of(experts, RANKS).expert_slot == placements[name].expert_slot


def to(*slots, loans=()):
    return lambda loads: lambda experts: Placement(slots, RANKS, loans)


def by_load(loads):
    def choose(experts):
        found = choose_placements(
            {"it": experts}, {"it": loads.tolist()}, ranks=RANKS, loan_rows=0.0
        )["it"]
        assert found != placement_of(experts, RANKS)
        return found

    return choose


def all_runs(rank):
    return [
        train(rank, {}),
        train(rank, {2: to(4, 0, 5, 1, 3, 2), 4: to(0, 1, 2, 3, 4, 5)}),
        train(rank, {1: to(0, 1, 2, 3, 4, 5, loans=((0, 1), (4, 0)))}),
        train(rank, {3: by_load}),
    ]


def test_losses_go_on_as_if_nothing_had_moved():
    for still, moved, lent, chosen in run_on_ranks(RANKS, all_runs):
        assert still == moved
        torch.testing.assert_close(lent, still, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(chosen, still, rtol=1e-5, atol=1e-6)
        assert len(set(still)) == STEPS


def test_a_loan_costs_the_rows_of_the_time_it_takes():
    rows = loan_cost_rows(
        expert_bytes=2_000_000, expert_parameters=1_000_000, link_bytes_per_s=1e9, flops_per_s=6e9
    )
    assert abs(rows - 4.0) < 1e-9  # 4 ms of sending, a row per ms
