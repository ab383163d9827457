import math

import pytest
import torch

from trainer.rl.engine.randomness import uniforms
from trainer.rl.engine.request import Sampling
from trainer.rl.engine.sampling import draw, settings_of

CPU = torch.device("cpu")


def drawn(logits_RV, uniform_R, samplings):
    return draw(logits_RV, uniform_R, settings_of(samplings, CPU))


def random_uniforms(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator)


def reference_probabilities(logits_V, sampling):
    """The distribution, written down naively in fp64."""
    probabilities = (logits_V.double() / sampling.temperature).softmax(dim=0)
    order = probabilities.argsort(descending=True, stable=True)
    kept = torch.zeros_like(probabilities)
    limit = sampling.top_k or len(order)
    mass = probabilities[order[:limit]].sum()
    before = 0.0
    for token in order[:limit].tolist():
        if before >= sampling.top_p * mass and sampling.top_p < 1.0:
            break
        kept[token] = probabilities[token]
        before += probabilities[token]
    return kept / kept.sum(), kept.sum()


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1.5, top_k=5),
    Sampling(top_p=0.7),
    Sampling(temperature=0.8, top_k=300, top_p=0.9),
    Sampling(top_k=1),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [7, 640, 1001])
def test_reported_probabilities_are_those_of_the_definition(sampling, vocabulary):
    logits_V = 2.0 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    expected, mass = reference_probabilities(logits_V, sampling)
    model = logits_V.double().log_softmax(dim=0)
    draws = drawn(logits_V.expand(200, -1), random_uniforms(200), [sampling] * 200)
    for token, logprob, model_logprob, log_mass in zip(
        draws.tokens, draws.logprobs, draws.model_logprobs, draws.kept_log_mass, strict=True
    ):
        assert expected[token] > 0
        assert logprob == pytest.approx(math.log(expected[token]), abs=2e-5)
        assert model_logprob == pytest.approx(float(model[token]), abs=2e-5)
        assert log_mass == pytest.approx(math.log(mass), abs=2e-5)
    for kept in draws.kept_ids.values():
        assert set(kept.tolist()) == set(expected.nonzero().flatten().tolist())


@pytest.mark.parametrize("sampling", SAMPLINGS[:5], ids=str)
def test_tokens_are_drawn_with_the_reported_probability(sampling):
    count = 30_000
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(3))
    expected, _ = reference_probabilities(logits_V, sampling)
    draws = drawn(logits_V.expand(count, -1), random_uniforms(count), [sampling] * count)
    counts = torch.bincount(torch.tensor(draws.tokens), minlength=12).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    gaps = (counts - count * expected)[possible] ** 2 / (count * expected[possible])
    # At most 11 degrees of freedom: beyond 40 lies less than one run in 10,000.
    assert gaps.sum() < 40


def test_a_row_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(5)
    logits_RV = torch.randn(len(SAMPLINGS) + 1, 500, generator=generator)
    uniform_R = random_uniforms(len(SAMPLINGS) + 1)
    samplings = [*SAMPLINGS, Sampling(temperature=0.0)]
    together = drawn(logits_RV, uniform_R, samplings)
    for row, sampling in enumerate(samplings):
        alone = drawn(logits_RV[row : row + 1], uniform_R[row : row + 1], [sampling])
        assert alone.tokens[0] == together.tokens[row]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[row], abs=1e-6)


def test_temperature_zero_takes_the_likeliest_token_for_certain():
    logits_RV = torch.randn(4, 50, generator=torch.Generator().manual_seed(6))
    draws = drawn(logits_RV, random_uniforms(4), [Sampling(temperature=0.0, top_p=0.5)] * 4)
    assert draws.tokens == logits_RV.argmax(dim=1).tolist()
    assert draws.logprobs == [0.0] * 4
    assert draws.model_logprobs == pytest.approx(
        logits_RV.log_softmax(dim=1).amax(dim=1).tolist(), abs=1e-6
    )


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_tokens_of_probability_zero_are_not_drawn_at_the_ends_of_the_interval(uniform):
    logits_RV = torch.full((1, 200), -200.0)
    logits_RV[0, [70, 71, 130]] = 0.0
    draws = drawn(logits_RV, torch.tensor([uniform], dtype=torch.float64), [Sampling()])
    assert draws.tokens[0] in (70, 130)


def test_rare_tokens_are_reached():
    logits_RV = torch.zeros(1, 64)
    logits_RV[0, 63] = -30.0
    share = math.exp(-30.0) / (63 + math.exp(-30.0))
    uniform = torch.tensor([1.0 - share / 2], dtype=torch.float64)
    assert drawn(logits_RV, uniform, [Sampling()]).tokens == [63]


def test_uniforms_of_different_seeds_give_the_distribution_too():
    import numpy as np

    count = 20_000
    uniform_R = torch.from_numpy(uniforms(np.arange(count), np.full(count, 4)))
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    draws = drawn(logits_V.expand(count, -1), uniform_R, [Sampling()] * count)
    counts = torch.bincount(torch.tensor(draws.tokens), minlength=4) / count
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)


def test_top_p_looks_as_far_as_it_must_into_a_flat_distribution():
    logits_V = 0.01 * torch.randn(1500, generator=torch.Generator().manual_seed(9))
    sampling = Sampling(top_p=0.9)
    expected, mass = reference_probabilities(logits_V, sampling)
    draws = drawn(logits_V.expand(20, -1), random_uniforms(20), [sampling] * 20)
    assert all(expected[token] > 0 for token in draws.tokens)
    assert draws.kept_log_mass == pytest.approx([math.log(mass)] * 20, abs=1e-3)
    assert abs(len(draws.kept_ids[0]) - int((expected > 0).sum())) <= 1
