"""Rounds of several ranks, one after the other in one process, against plain PyTorch."""

import pytest
import torch

from parallel.layout import Layout
from tests.trainer.rl.samples import VOCABULARY, make_samples
from trainer.model.config import Architecture
from trainer.model.decoder import ALONE, Decoder
from trainer.model.init import init_weights
from trainer.planner.plan import Round, SequenceGroup, StepPlan
from trainer.rl.judging import CORRECTED, FIGURES
from trainer.rl.messages import TrainOn
from trainer.rl.objectives.config import PUBLISHED, ObjectiveConfig
from trainer.rl.objectives.policy import pair_loss, policy_loss
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream
from trainer.rl.rounds import PolicyRounds
from trainer.rl.work import NAMES, WorkMaker

ARCHITECTURE = Architecture(
    vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, init_std=0.3
)
MAX_RESPONSE = 20


class OneProcess:
    """Gradients that autograd adds up by itself."""

    def start_round(self, *, last):
        self.last = last

    def finish(self): ...

    def squared_norm(self):
        return torch.zeros(())

    def zero(self): ...


def make_model():
    model = Decoder(ARCHITECTURE)
    init_weights(model, 1)
    model.loss_chunk_tokens = 5
    return model


def plan_on(ranks, units):
    """Three rounds, dealt out unevenly; the last rank has none of them."""
    busy = max(1, ranks - 1)
    slots = [[[] for _ in range(busy)] for _ in range(3)]
    for unit in range(units):
        slots[unit % 2][unit % busy].append(unit)
    return StepPlan(
        step=1,
        layout=Layout(replica=ranks),
        rounds=tuple(
            Round(
                groups=tuple(
                    SequenceGroup(first_rank=rank, size=1, sequences=tuple(own))
                    for rank, own in enumerate(dealt)
                )
            )
            for dealt in slots
        ),
        padding="group",
    )


def rounds_of(ranks, order, config):
    """Summed loss, figures and gradients of all ranks."""
    model = make_model()
    rounds = PolicyRounds(model, OneProcess(), lambda number: None, config)
    units = len(order.pairs) or len(order.samples)
    loss, sums = 0.0, torch.zeros(len(FIGURES))
    for rank in range(ranks):
        maker = WorkMaker(
            data_rank=rank,
            longest_tokens=100,
            padding_token=0,
            max_response_tokens=MAX_RESPONSE,
            choose=lambda step, lengths: plan_on(ranks, units),
        )
        work = maker.work(1, order)
        parts = rounds.train(work.batches, [ALONE] * len(work.batches), divisor=work.divisor)
        loss += float(parts.loss_sum) / work.divisor
        sums += parts.figures
    figures = work.figures.with_sums(sums.tolist())
    return loss, figures, [parameter.grad for parameter in model.parameters()]


def plain(order, config):
    """The objective on all samples at once, each with a forward of its own."""
    model = make_model()
    samples = order.samples
    logp, fields = [], {name: [] for name in ("mask", "sequence", "behave", "advantage", "ref")}
    for place, sample in enumerate(samples):
        tokens = torch.from_numpy(sample.tokens).long()
        n = len(tokens) - 1
        scores = model.logits(tokens[:-1], torch.arange(n), (n,))
        logp.append(scores.log_softmax(-1).gather(1, tokens[1:, None]).squeeze(1))
        of = sample.log_probs if config.kind in CORRECTED else sample.model_log_probs
        fields["mask"].append(torch.from_numpy(sample.loss_mask[1:] != 0))
        fields["sequence"].append(torch.full((n,), place))
        fields["behave"].append(torch.from_numpy(of[1:].copy()))
        fields["advantage"].append(torch.full((n,), sample.advantage))
        fields["ref"].append(torch.from_numpy(sample.reference_log_probs[1:].copy()))
    whole = {name: torch.cat(parts) for name, parts in fields.items()}
    logp_T = torch.cat(logp)
    tokens_S = torch.tensor([int((s.loss_mask[1:] != 0).sum()) for s in samples])
    stream = PolicyStream(
        mask_T=whole["mask"],
        sequence_T=whole["sequence"],
        tokens_S=tokens_S,
        advantage_T=whole["advantage"],
        behave_T=whole["behave"],
        proximal_T=logp_T.detach() if config.kind == "decoupled_ppo" else None,
        reference_T=whole["ref"],
    )
    counts = GlobalCounts(
        tokens=int(tokens_S.sum()),
        sequences=len(samples),
        max_response_tokens=MAX_RESPONSE,
        pairs=len(order.pairs),
    )
    if config.learns_from_pairs:
        loss = pair_loss(logp_T, stream, torch.tensor(order.pairs), counts, config)
    else:
        loss = policy_loss(logp_T, stream, counts, config).loss
    loss.backward()
    return loss.detach(), logp_T.detach(), whole, model


KINDS = [
    *(ObjectiveConfig(kind=kind) for kind in PUBLISHED),
    ObjectiveConfig(kind="grpo", kl_coefficient=0.3),
    ObjectiveConfig(kind="dpo"),
    ObjectiveConfig(kind="rso", preference_loss="hinge"),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}-{c.kl_coefficient}")
@pytest.mark.parametrize("ranks", [1, 3])
def test_loss_and_gradient_are_those_of_one_plain_computation(config, ranks):
    pairs = ((0, 1), (4, 2), (3, 5)) if config.learns_from_pairs else ()
    order = TrainOn(version=3, samples=make_samples(6), pairs=pairs)
    wanted, _, _, model = plain(order, config)
    loss, _, gradients = rounds_of(ranks, order, config)
    assert loss == pytest.approx(float(wanted), rel=2e-5, abs=2e-6)
    for got, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=2e-4, atol=2e-6)


def test_figures_are_means_over_the_tokens_they_speak_of():
    config = ObjectiveConfig(kind="dapo")
    order = TrainOn(version=3, samples=make_samples(5), figures={"reward/mean": 0.25})
    _, logp_T, whole, _ = plain(order, config)
    _, figures, _ = rounds_of(2, order, config)
    mask = whole["mask"]
    current = torch.cat([torch.from_numpy(s.versions[1:] == 3) for s in order.samples])
    drift = logp_T - whole["behave"]
    assert figures["reward/mean"] == 0.25
    assert figures["trust/kernel"] == pytest.approx(float(drift[mask & current].abs().mean()), 1e-4)
    assert figures["trust/version"] == pytest.approx(float(drift[mask & ~current].mean()), 1e-4)
    assert figures["trust/mask"] == pytest.approx(0.1, rel=1e-4)
    ratio, gain = drift.exp(), whole["advantage"]
    clipped = mask & (((ratio > 1.28) & (gain > 0)) | ((ratio < 0.8) & (gain < 0)))
    assert figures[NAMES["clipped"]] == pytest.approx(float(clipped.sum() / mask.sum()), 1e-4)


def test_figures_of_no_token_are_left_out():
    order = TrainOn(version=9, samples=make_samples(3))
    _, figures, _ = rounds_of(1, order, ObjectiveConfig(kind="dapo"))
    assert "trust/kernel" not in figures
    assert "trust/version" in figures


@pytest.mark.parametrize("kind", ["grpo", "gspo", "aipo", "dpo"])
def test_a_step_without_samples_has_no_loss_and_no_gradient(kind):
    loss, _, gradients = rounds_of(2, TrainOn(version=3, samples=()), ObjectiveConfig(kind=kind))
    assert loss == 0.0
    assert all((gradient == 0.0).all() for gradient in gradients)
