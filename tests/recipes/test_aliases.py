"""Names from other systems lead to ours."""

import pytest

from recipes.aliases import ALIASES, NOTES, unknown_key
from recipes.keys import key_table
from recipes.schema import Recipe

TABLE = key_table(Recipe)


def test_every_alias_leads_to_a_key_and_is_none_itself():
    assert {target for target in ALIASES.values() if target not in TABLE} == set()
    assert {name for name in ALIASES if name in TABLE} == set()
    assert set(NOTES) <= set(ALIASES)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("dp", "parallel.replica"),
        ("parallel.dp", "parallel.replica"),
        ("micro_batch_size", "train.max_tokens_per_device"),
        ("train.micro_batch_size", "train.max_tokens_per_device"),
        ("gradient_accumulation_steps", "train.max_tokens_per_device"),
        ("global_batch_size", "train.global_batch_tokens"),
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("max_steps", "train.steps"),
        ("train.max_steps", "train.steps"),
        ("model_name_or_path", "model.path"),
        ("actor_rollout_ref.model.path", "model.path"),
        ("cutoff_len", "data.seq_len"),
        ("save_steps", "checkpoint.interval_steps"),
        ("checkpoint.interval", "checkpoint.interval_steps"),
        ("checkpoint.folder", "run.dir"),
        ("resume", "run.resume"),
        ("resume_from_checkpoint", "run.resume"),
        ("trainer.experiment_name", "run.name"),
        ("clip_grad", "optim.max_grad_norm"),
        ("num_generations", "rl.samples_per_prompt"),
        ("actor_rollout_ref.rollout.n", "rl.samples_per_prompt"),
        ("rl.max_async_level", "rl.max_staleness"),
        ("rollout.max_response_length", "rollout.max_new_tokens"),
        ("algorithm.adv_estimator", "rl.objective.kind"),
        ("fsdp", "parallel.shard"),
        ("model.num_experts_per_tok", "model.moe.top_k"),
        ("model.top_k", "model.moe.top_k"),
        ("train.global_batch_token", "train.global_batch_tokens"),
        ("optim.weight_decy", "optim.weight_decay"),
        ("cluster.deadline.placing_s", "cluster.deadlines.placing_s"),
    ],
)
def test_the_nearest_known_key_is_named(key, meant):
    assert f"did you mean {meant}?" in unknown_key(key, TABLE)


def test_a_name_that_would_mislead_comes_with_a_note():
    assert "(give tokens, not sequences)" in unknown_key("micro_batch_size", TABLE)
    assert "steps = epochs ×" in unknown_key("num_train_epochs", TABLE)
