from dataclasses import replace

import pytest
import torch

from tests.trainer.model.batches import make_batch
from trainer.model.config import MoeConfig
from trainer.model.moe import MoeFeedForward, Routing, moe_stats
from trainer.model.packing import Packing, SequenceWeights, sequence_weights

WIDTH = 12
MOE = MoeConfig(
    num_experts=6, top_k=2, expert_intermediate_size=10, aux_loss_weight=0.1, z_loss_weight=0.01
)
SEQUENCES = [[7, 5], [3, -4], [9]]


def make_moe(moe, seed=0):
    module = MoeFeedForward(WIDTH, moe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module


def hidden(tokens, seed=5):
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def packing_of(sequences):
    batch = make_batch(sequences, 50)
    return Packing(document_ends=batch.document_ends, sequences=sequence_weights(batch))


def run(module, sequences, x_TD):
    return module(x_TD, packing_of(sequences))


def by_hand(module, x_D):
    """One token, every expert computed alone."""
    moe, logits = module.moe, module.gate.weight @ x_D
    scores = logits.softmax(0) if moe.scoring == "softmax" else logits.sigmoid()
    chosen = (scores + module.gate.expert_bias).topk(moe.top_k).indices
    weights = scores[chosen]
    if moe.normalize_top_k:
        weights = weights / weights.sum()
    out = torch.zeros(WIDTH)
    for weight, expert in zip(weights * moe.routed_scale, chosen, strict=True):
        gate, up = (x_D @ module.experts.gate_up_proj[expert]).chunk(2)
        out += weight * ((torch.nn.functional.silu(gate) * up) @ module.experts.down_proj[expert])
    if module.shared_experts is not None:
        out += module.shared_experts(x_D)
    return out


@pytest.mark.parametrize(
    "moe",
    [
        MOE,
        replace(MOE, scoring="sigmoid", routed_scale=2.5, shared_intermediate_size=8),
        replace(MOE, normalize_top_k=False, top_k=1),
        replace(MOE, top_k=6),
    ],
)
def test_every_token_meets_its_experts_and_none_is_dropped(moe):
    module, x_TD = make_moe(moe), hidden(28)
    module.gate.expert_bias.copy_(torch.linspace(-0.2, 0.2, 6))
    y_TD, _ = run(module, SEQUENCES, x_TD)
    wanted_TD = torch.stack([by_hand(module, x_D) for x_D in x_TD])
    torch.testing.assert_close(y_TD, wanted_TD, rtol=1e-4, atol=1e-5)


def test_the_bias_decides_who_is_chosen_and_never_how_much_they_weigh():
    module = make_moe(replace(MOE, normalize_top_k=False, top_k=1))
    x_TD = hidden(20)
    module.gate.expert_bias[3] = 10.0
    routing = module.gate(x_TD)
    assert (routing.experts_Tk == 3).all()
    assert torch.equal(routing.weights_Tk[:, 0], routing.shares_TE[:, 3])
    assert routing.weights_Tk.requires_grad
    assert not module.gate.expert_bias.requires_grad


def test_all_tokens_to_one_expert_still_gives_every_parameter_a_gradient():
    module = make_moe(replace(MOE, top_k=1))
    module.gate.expert_bias[4] = 10.0
    y_TD, stats = run(module, [[28]], hidden(28))
    (y_TD.sum() + stats.aux).backward()
    assert stats.load_E.tolist() == [0, 0, 0, 0, 28, 0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_statistics_of_a_batch_are_the_sum_over_its_sequences():
    module, x_TD = make_moe(MOE), hidden(28)
    _, whole = run(module, SEQUENCES, x_TD)
    parts, start = [], 0
    for sequence in SEQUENCES:
        end = start + sum(abs(length) for length in sequence)
        parts.append(run(module, [sequence], x_TD[start:end])[1])
        start = end
    torch.testing.assert_close(whole.aux, torch.stack([p.aux for p in parts]).sum())
    assert torch.equal(whole.load_E, torch.stack([p.load_E for p in parts]).sum(0))


def test_padding_is_in_no_statistic():
    module, x_TD = make_moe(MOE), hidden(28)
    _, before = run(module, SEQUENCES, x_TD)
    x_TD[15:19] = 100.0
    _, after = run(module, SEQUENCES, x_TD)
    assert torch.equal(before.aux, after.aux)
    assert torch.equal(before.load_E, after.load_E)
    assert after.load_E.sum() == MOE.top_k * (12 + 3 + 9)


def balanced(tokens, experts):
    """Each token wants the next expert in turn, with no preference in its scores."""
    logits_TE = torch.zeros(tokens, experts)
    experts_T1 = (torch.arange(tokens) % experts).unsqueeze(1)
    return Routing(experts_T1, torch.ones(tokens, 1), logits_TE.softmax(-1), logits_TE)


def stats_of(routing, targets, moe):
    tokens, experts = routing.shares_TE.shape
    assigned_TE = torch.zeros(tokens, experts).scatter_(1, routing.experts_Tk, 1.0)
    sequences = SequenceWeights(
        mean_ST=torch.full((1, tokens), 1 / tokens),
        targets_S=torch.tensor([float(targets)]),
        real_T=torch.ones(tokens),
    )
    return moe_stats(routing, assigned_TE, sequences, moe)


def test_perfect_balance_costs_exactly_the_weight_per_target():
    moe = replace(MOE, top_k=1, z_loss_weight=0.0)
    stats = stats_of(balanced(12, 6), 11, moe)
    assert stats.aux.item() == pytest.approx(11 * 0.1, rel=1e-6)


def test_collapse_costs_the_number_of_experts_times_the_weight():
    moe = replace(MOE, top_k=1, z_loss_weight=0.0)
    logits_TE = torch.full((12, 6), -1e4)
    logits_TE[:, 2] = 0.0
    routing = Routing(torch.full((12, 1), 2), torch.ones(12, 1), logits_TE.softmax(-1), logits_TE)
    assert stats_of(routing, 11, moe).aux.item() == pytest.approx(11 * 0.1 * 6, rel=1e-6)


def test_the_z_loss_is_the_mean_squared_log_partition():
    moe = replace(MOE, top_k=1, aux_loss_weight=0.0, z_loss_weight=0.5)
    wanted = 11 * 0.5 * torch.tensor(6.0).log().square().item()
    assert stats_of(balanced(12, 6), 11, moe).aux.item() == pytest.approx(wanted, rel=1e-6)


def test_backward_of_the_dispatch_is_that_of_plain_indexing():
    module, x_TD = make_moe(MOE), hidden(9).requires_grad_(True)
    y_TD, _ = run(module, [[9]], x_TD)
    wanted_TD = torch.stack([by_hand(module, x_D) for x_D in x_TD])
    upstream = hidden(9, seed=8)
    inputs = [x_TD, *module.parameters()]
    for got, want in zip(
        torch.autograd.grad(y_TD, inputs, upstream),
        torch.autograd.grad(wanted_TD, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
