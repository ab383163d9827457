"""Episodes: token in, token out, whatever happens in between."""

import json

import pytest

from trainer.rl.tasks.arithmetic import Arithmetic
from trainer.rl.tasks.environments import AnswerEnvironment
from trainer.rl.tasks.episode import Episode, replay


def act(episode, tokens, version=3):
    count = len(tokens)
    episode.act(list(episode.tokens), tokens, log_probs=[-0.5] * count, versions=[version] * count)


def example():
    episode = Episode([1, 2])
    act(episode, [5, 6], version=3)
    act(episode, [7], version=4)
    episode.observe([8, 9])
    act(episode, [5], version=4)
    return episode


def test_exactly_the_sampled_tokens_are_trained_on():
    episode = example()
    assert episode.tokens == [1, 2, 5, 6, 7, 8, 9, 5]
    assert episode.loss_mask == [0, 0, 1, 1, 1, 0, 0, 1]
    assert (episode.prompt_tokens, episode.response_tokens) == (2, 4)


def test_each_token_keeps_its_log_probability_and_version():
    episode = example()
    assert episode.versions == [-1, -1, 3, 3, 4, -1, -1, 4]
    assert episode.log_probs == [0, 0, -0.5, -0.5, -0.5, 0, 0, -0.5]
    assert episode.oldest_version == 3
    assert Episode([1]).oldest_version == -1


@pytest.mark.parametrize(
    ("context", "place"), [([1, 3], 1), ([1], 1), ([], 0), ([1, 2, 3], 2), ([9, 2], 0)]
)
def test_tokens_sampled_after_another_context_are_refused(context, place):
    episode = Episode([1, 2])
    with pytest.raises(ValueError, match=f"different from token {place} on"):
        episode.act(context, [5], log_probs=[0.0], versions=[0])
    assert episode.tokens == [1, 2]


def test_a_token_without_log_probability_is_refused():
    with pytest.raises(ValueError, match="each token needs one of each"):
        Episode([1]).act([1], [5, 6], log_probs=[0.0], versions=[0, 0])


def test_a_record_restores_the_episode():
    episode = example()
    restored = Episode.restore(json.loads(json.dumps(episode.record())))
    assert restored.record() == episode.record()
    act(restored, [4])
    assert len(restored.tokens) == len(episode.tokens) + 1


def test_actions_restore_the_environment(codec):
    task = Arithmetic(seed=0)
    question = task.question(0)

    def make():
        return AnswerEnvironment(task, codec, question, max_turns=2, retry_text="again")

    episode, environment = Episode(codec.encode_prompt(question.text)), make()
    act(episode, codec.encode("n"))
    act(episode, codec.encode("o"))  # one answer, sampled in two stretches
    episode.observe(environment.step(codec.encode("no")).observation)
    restored, turn = replay(make, episode.actions())
    assert not turn.done
    answer = codec.encode(question.reference["answer"])
    assert restored.step(answer) == environment.step(answer)
    assert restored.score() == environment.score() == 1.0
    assert replay(make, [])[1] is None
