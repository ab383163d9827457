from dataclasses import replace

import pytest
import torch

from tests.trainer.model.generating import ARCHITECTURES, PLAIN, make_model
from tests.trainer.rl.engine.rollouts import CONFIG, answers_of, requests, whole_logprobs
from trainer.model.config import RopeScaling
from trainer.rl.engine.request import Request, Sampling


def test_half_precision_keeps_its_own_rounding():
    model = make_model().bfloat16()
    together, _ = answers_of(model)
    for request in requests():
        answer = together[request.id, 0]
        expected = whole_logprobs(model, request, answer).float()
        got = torch.tensor(answer.model_logprobs)
        # bf16 keeps 8 bits; the logits of this model reach 5.
        torch.testing.assert_close(got, expected, rtol=0.03, atol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_device_draws_with_the_models_own_logprobs(dtype):
    wide = replace(PLAIN, hidden_size=64)
    model = make_model(wide).to(device="cuda", dtype=dtype)
    config = replace(CONFIG, max_draft_tokens=2, kv_bytes=2**20)
    together, _ = answers_of(model, config)
    bound = 1e-3 if dtype == torch.float32 else 0.15
    for request in requests():
        answer = together[request.id, 0]
        text = torch.tensor([*request.prompt, *answer.tokens], device="cuda")
        with torch.no_grad():
            logits = model.logits(text, torch.arange(len(text), device="cuda"), (len(text),))
        logprobs = logits[len(request.prompt) - 1 : -1].float().log_softmax(dim=1)
        expected = logprobs.gather(1, text[len(request.prompt) :, None]).squeeze(1).cpu()
        got = torch.tensor(answer.model_logprobs)
        torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


def test_routing_of_every_stored_token_is_recorded():
    model = make_model(ARCHITECTURES["moe"])
    config = replace(CONFIG, record_routing=True, max_draft_tokens=3)
    together, _ = answers_of(model, config)
    decided = []
    handles = [
        mixture.gate.register_forward_hook(lambda _, __, out: decided.append(out.experts_Tk))
        for mixture in model.mixtures
    ]
    for request in requests():
        for sample in range(len(request.seeds)):
            answer = together[request.id, sample]
            decided.clear()
            whole_logprobs(model, request, answer)
            expected = torch.stack(decided, dim=1)[:-1]
            assert torch.equal(torch.from_numpy(answer.routing).long(), expected)
    for handle in handles:
        handle.remove()


def test_dynamic_scaling_is_refused_beyond_its_original_context():
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_context_tokens=16)
    model = make_model(replace(PLAIN, rope_scaling=scaling))
    asked = [Request(id="fits", prompt=(1, 2, 3), sampling=Sampling(max_new_tokens=13))]
    answer = answers_of(model, asked=asked)[0]["fits", 0]
    expected = whole_logprobs(model, asked[0], answer)
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="16 fit together"):
        answers_of(model, asked=[replace(asked[0], prompt=(1, 2, 3, 4))])
