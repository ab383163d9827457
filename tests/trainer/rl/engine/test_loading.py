from dataclasses import replace

import pytest
import torch

from tests.trainer.model.generating import make_model
from tests.trainer.rl.engine.rollouts import CONFIG, finish, requests, whole_logprobs
from trainer.rl.engine.engine import Engine


def test_wrong_weights_are_refused_and_the_old_ones_stay():
    model = make_model()
    engine = Engine(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    missing = {name: state[name] for name in list(state)[1:]}
    for tensors, message in (
        (missing.items(), "1 weights are missing"),
        ((state | {"x": torch.zeros(1)}).items(), "weight x was given but is not of the model"),
        ([*state.items(), next(iter(state.items()))], "given twice"),
        ((state | {"norm.weight": torch.zeros(3)}).items(), r"shape \[3\] and the model's is"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.load(1, tensors)
    assert engine.stats().version == 0
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("policy", ["keep", "recompute"])
def test_new_weights_reach_answers_under_way_and_every_token_knows_its_version(policy):
    model, other = make_model(seed=1), make_model(seed=2)
    engine = Engine(model, replace(CONFIG, on_new_weights=policy))
    for request in requests():
        engine.submit(request)
    answers = []
    for _ in range(7):
        answers += engine.step().finished
    engine.load(3, other.state_dict().items())
    found = {(answer.request_id, answer.sample): answer for answer in answers} | finish(engine)
    changed = 0
    for request in requests():
        for sample in range(len(request.seeds)):
            answer = found[request.id, sample]
            assert len(answer.tokens) == request.sampling.max_new_tokens
            assert answer.versions == sorted(answer.versions)
            assert set(answer.versions) <= {0, 3}
            changed += len(set(answer.versions)) == 2
            if policy == "recompute" or answer.versions[0] == 3:
                new = [i for i, version in enumerate(answer.versions) if version == 3]
                expected = whole_logprobs(other, request, answer)[new]
                got = torch.tensor(answer.model_logprobs)[new]
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert changed > 0
