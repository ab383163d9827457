from dataclasses import replace

import numpy as np
import pytest
import torch

from parallel.layout import Layout
from tests.trainer.rl.samples import VOCABULARY, make_sample
from trainer.model.config import Architecture
from trainer.model.decoder import ALONE, Decoder
from trainer.model.init import init_weights
from trainer.planner.plan import Round, SequenceGroup, StepPlan
from trainer.rl.batch import input_tokens
from trainer.rl.messages import TrainOn
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.prompts import prompt_units, shared_tokens, stream_tokens
from trainer.rl.rounds import PolicyRounds
from trainer.rl.work import WorkMaker


def answers(group, prompt, lengths, **changes):
    """Samples with one prompt of `prompt` tokens and answers of these lengths."""
    asked = np.random.default_rng(100 + group).integers(0, VOCABULARY, prompt).astype(np.int32)
    found = []
    for number, length in enumerate(lengths):
        sample = make_sample(10 * group + number, length=prompt + length, **changes)
        tokens = np.concatenate([asked, sample.tokens[prompt:]])
        mask = (np.arange(prompt + length) >= prompt).astype(np.int8)
        known = {
            name: np.where(mask, np.nan_to_num(getattr(sample, name), nan=-2.0), 0.0).astype("f4")
            for name in ("log_probs", "model_log_probs", "reference_log_probs")
        }
        versions = np.where(mask, 3, -1).astype(np.int32)
        found.append(
            replace(sample, tokens=tokens, loss_mask=mask, versions=versions, group=group, **known)
        )
    return found


SAMPLES = (*answers(1, 6, (3, 1, 4, 3)), *answers(2, 4, (2,)), *answers(3, 1, (5, 2)))


def test_what_was_not_sampled_is_shared_but_for_the_last_token_that_answers_follow():
    assert shared_tokens(SAMPLES) == [0, 5, 5, 5, 0, 0, 0]
    assert stream_tokens(SAMPLES) == sum(map(input_tokens, SAMPLES)) - 15


def test_prompts_that_differ_are_shared_up_to_there():
    first, second, third = answers(1, 6, (3, 3, 3))
    tokens = second.tokens.copy()
    tokens[2] = (tokens[2] + 1) % VOCABULARY
    assert shared_tokens([first, replace(second, tokens=tokens), third]) == [0, 2, 5]
    assert shared_tokens([first, replace(second, group=9), third]) == [0, 0, 0]


def test_units_hold_prompts_together_as_long_as_there_are_enough_of_them():
    def units(**limits):
        return prompt_units(SAMPLES, **{"least": 1, "longest_tokens": 100, **limits})

    assert units() == ((0, 1, 2, 3), (4,), (5,), (6,))
    assert units(least=3) == ((0, 1), (2, 3), (4,), (5,), (6,))
    assert units(least=50) == tuple((place,) for place in range(7))
    # 8 + 6, then 9 + 8, 5, 5 and 2, written out.
    assert units(longest_tokens=16) == ((0, 1), (2,), (3,), (4,), (5,), (6,))
    assert prompt_units((), least=4, longest_tokens=5) == ()


def trained(ranks, order, config, prompt_units):
    """Loss, figures, gradients and rows of all ranks."""
    architecture = Architecture(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1
    )
    model = Decoder(architecture)
    init_weights(model, 1)

    class OneProcess:
        def start_round(self, *, last): ...

        def finish(self): ...

        def squared_norm(self):
            return torch.zeros(())

        def zero(self): ...

    def choose(step, lengths):
        dealt = [[unit for unit in range(len(lengths)) if unit % ranks == r] for r in range(ranks)]
        groups = tuple(
            SequenceGroup(first_rank=rank, size=1, sequences=tuple(own))
            for rank, own in enumerate(dealt)
        )
        layout = Layout(replica=ranks)
        return StepPlan(step=step, layout=layout, rounds=(Round(groups=groups),), padding="group")

    rounds = PolicyRounds(model, OneProcess(), lambda number: None, config)
    loss, sums, rows = 0.0, 0.0, 0
    for rank in range(ranks):
        maker = WorkMaker(
            data_rank=rank,
            longest_tokens=100,
            padding_token=0,
            max_response_tokens=9,
            choose=choose,
            prompt_units=prompt_units,
        )
        work = maker.work(1, order)
        rows += sum(len(batch.tokens_T) for batch in work.batches)
        parts = rounds.train(work.batches, [ALONE] * len(work.batches), divisor=work.divisor)
        loss += float(parts.loss_sum) / work.divisor
        sums = sums + parts.figures
    assert work.num_tokens >= rows
    return loss, sums, [parameter.grad for parameter in model.parameters()], rows


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["grpo", "decoupled_ppo", "dpo"])
def test_losses_and_gradients_are_those_of_the_stream_written_out(kind, ranks):
    pairs = ((0, 1), (2, 3), (5, 6)) if kind == "dpo" else ()
    order = TrainOn(version=3, samples=SAMPLES, pairs=pairs)
    config = ObjectiveConfig(kind=kind)
    loss, figures, gradients, rows = trained(ranks, order, config, None)
    shared_loss, shared_figures, shared_gradients, shared_rows = trained(ranks, order, config, 1)
    assert shared_rows < rows
    assert shared_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(shared_figures, figures, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(shared_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_stream_in_which_nothing_is_shared_stays_as_it_is():
    alone = tuple(replace(sample, group=place) for place, sample in enumerate(SAMPLES))
    order = TrainOn(version=3, samples=alone)
    config = ObjectiveConfig(kind="grpo")
    loss, _, gradients, rows = trained(1, order, config, None)
    same_loss, _, same_gradients, same_rows = trained(1, order, config, 1)
    assert (same_loss, same_rows) == (loss, rows)
    for ours, theirs in zip(same_gradients, gradients, strict=True):
        assert torch.equal(ours, theirs)
