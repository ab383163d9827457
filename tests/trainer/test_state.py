"""What a checkpoint of a run holds, and what it refuses to go on with."""

import pytest
import torch

from trainer.config import OptimConfig
from trainer.errors import RecipeError
from trainer.model.config import Architecture, MoeConfig
from trainer.model.decoder import Decoder
from trainer.optim import DeviceAdamW
from trainer.state import require_same_data, tensors_of, tensors_to_fill


def test_weights_buffers_and_moments_are_all_there():
    moe = MoeConfig(num_experts=3, top_k=1, expert_intermediate_size=8)
    model = Decoder(Architecture(vocab_size=64, hidden_size=16, num_layers=1, moe=moe))
    optimizer = DeviceAdamW(model, OptimConfig())
    tensors = tensors_of(model, optimizer)
    parameters = [name for name, _ in model.named_parameters()]
    assert {f"model.{name}" for name in parameters} <= set(tensors)
    assert any(name.endswith("expert_bias") for name in tensors)
    assert sum(name.startswith("optim.") for name in tensors) == 2 * len(parameters)
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert tensors["model.norm.weight"].data_ptr() == model.norm.weight.data_ptr()
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert set(tensors_to_fill(model, optimizer)) == set(tensors)


def test_other_data_is_refused_by_what_differs():
    stored = {"fingerprint": "a", "seed": 1, "seq_len": 8, "sequences_per_step": 4}
    require_same_data(stored, dict(stored))
    with pytest.raises(RecipeError, match=r"seed: 1 in the checkpoint, 2 now"):
        require_same_data(stored, stored | {"seed": 2})
