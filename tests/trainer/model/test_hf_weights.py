"""Agreement with transformers on tiny random checkpoints of every family, both ways."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.ranks import run_on_ranks
from trainer.generate import generate
from trainer.model.decoder import Decoder
from trainer.model.hf_config import read_architecture
from trainer.model.hf_weights import load_hf_weights, write_hf_folder

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
TOKENS = torch.randint(0, 97, (41,), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Case:
    """A family and what is special about its checkpoint."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    shard: str = "5GB"


CASES = {
    "llama": Case("llama"),
    "llama-llama3": Case("llama", {"rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama-linear": Case("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama-tied": Case("llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "llama-dynamic": Case(
        "llama",
        {
            "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
            "max_position_embeddings": 16,
        },
    ),
    "qwen2": Case("qwen2", WINDOW),
    "qwen3-yarn": Case("qwen3", WINDOW | {"head_dim": 16, "rope_scaling": YARN}),
    "mistral": Case("mistral", {"sliding_window": 5}),
    "mixtral": Case("mixtral", {"num_local_experts": 5, "sliding_window": 9}),
    "qwen3_moe-sharded": Case(
        "qwen3_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [0],
            "head_dim": 8,
            "norm_topk_prob": True,
        },
        shard="20KB",
    ),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A random checkpoint of every case, saved by transformers, with the logits it gives."""
    found = {}
    for name, case in CASES.items():
        config = transformers.AutoConfig.for_model(case.family, **TINY | case.changes)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "norm" in key or key.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) / 4)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, max_shard_size=case.shard)
        found[name] = folder, model, their_logits(model)
    return found


@torch.no_grad()
def their_logits(model):
    return model(TOKENS.unsqueeze(0)).logits[0]


@torch.no_grad()
def our_logits(model):
    return model.logits(TOKENS, torch.arange(len(TOKENS)), (len(TOKENS),))


def meta_model(folder):
    with torch.device("meta"):
        return Decoder(read_architecture(folder))


def load(folder):
    model = meta_model(folder).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.zeros_(tensor)
    return model, load_hf_weights(model, folder)


def export(model, folder, **changes):
    options = {"dtype": torch.float32, "max_shard_bytes": 10**9, "tokenizer_folder": None}
    write_hf_folder(folder, model.architecture, model.state_dict(), **options | changes)


@pytest.mark.parametrize("name", CASES)
def test_logits_agree_after_loading_and_again_after_exporting(name, checkpoints, tmp_path):
    folder, _, wanted = checkpoints[name]
    model, sentence = load(folder)
    assert sentence.startswith("loaded ")
    torch.testing.assert_close(our_logits(model), wanted, rtol=1e-5, atol=1e-5)
    export(model, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    torch.testing.assert_close(their_logits(theirs.eval()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("buffers_first", [False, True])
def test_experts_that_moved_are_exported_in_their_order(buffers_first, checkpoints, tmp_path):
    folder, _, wanted = checkpoints["qwen3_moe-sharded"]
    model, _ = load(folder)
    for experts in model.experts:
        slot_E = torch.randperm(experts.num_experts, generator=torch.Generator().manual_seed(1))
        experts.expert_slot.copy_(slot_E)
        for stacked in experts.parameters():
            stacked.detach()[slot_E] = stacked.detach().clone()
    torch.testing.assert_close(our_logits(model), wanted, rtol=1e-5, atol=1e-5)
    tensors = sorted(model.state_dict().items(), key=lambda item: "slot" not in item[0])
    write_hf_folder(
        tmp_path / "out",
        model.architecture,
        tensors if buffers_first else tensors[::-1],
        dtype=torch.float32,
        max_shard_bytes=10**9,
        tokenizer_folder=None,
    )
    again, _ = load(tmp_path / "out")
    torch.testing.assert_close(our_logits(again), wanted, rtol=1e-5, atol=1e-5)
    for ours, stored in zip(again.parameters(), load(folder)[0].parameters(), strict=True):
        assert torch.equal(ours, stored)


@pytest.mark.parametrize("name", ["qwen3-yarn", "mixtral"])
def test_greedy_text_agrees(name, checkpoints):
    folder, theirs, _ = checkpoints[name]
    model, _ = load(folder)
    prompt = TOKENS[:6]
    wanted = theirs.generate(
        prompt.unsqueeze(0),
        attention_mask=torch.ones(1, 6, dtype=torch.int64),
        max_new_tokens=15,
        do_sample=False,
    )[0, 6:]
    ours = generate(
        model,
        prompt.tolist(),
        max_new_tokens=15,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        eos_id=None,
        context=64,
    )
    assert list(ours) == wanted.tolist()


def test_an_export_in_shards_has_an_index_and_loads_here(checkpoints, tmp_path):
    model, _ = load(checkpoints["qwen3_moe-sharded"][0])
    export(model, tmp_path / "out", max_shard_bytes=15_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    again, _ = load(tmp_path / "out")
    assert torch.equal(our_logits(again), our_logits(model))


def test_an_export_carries_dtype_and_tokenizer(checkpoints, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": 7, "content": "<|end|>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    model, _ = load(checkpoints["llama-tied"][0])
    export(model, tmp_path / "out", dtype=torch.bfloat16, tokenizer_folder=tokenizer)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["torch_dtype"], config["eos_token_id"]) == ("bfloat16", 7)
    assert (tmp_path / "out/tokenizer.json").is_file()
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors


def full_tensors(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    model = meta_model(folder)
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    load_hf_weights(model, folder)
    return {name: p.full_tensor().detach() for name, p in model.named_parameters()}


def test_ranks_read_their_own_rows(checkpoints):
    folder = checkpoints["mixtral"][0]
    wanted = load(folder)[0].state_dict()
    for found in run_on_ranks(2, full_tensors, folder):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
