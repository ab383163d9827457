"""What a key nobody knows was probably meant to be. Pure.

The table holds what other systems call our keys, so that a recipe brought along fails with the
name to use here.
"""

import difflib

from recipes.keys import KeyTable

_DERIVED = "train.max_tokens_per_device"

ALIASES: dict[str, str] = {
    # model
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "model_name": "model.path",
    "pretrained_model_name_or_path": "model.path",
    "num_hidden_layers": "model.num_layers",
    "n_layers": "model.num_layers",
    "n_layer": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "n_heads": "model.num_heads",
    "n_head": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "n_kv_heads": "model.num_kv_heads",
    "num_query_groups": "model.num_kv_heads",
    "dim": "model.hidden_size",
    "d_model": "model.hidden_size",
    "n_embd": "model.hidden_size",
    "ffn_hidden_size": "model.intermediate_size",
    "d_ff": "model.intermediate_size",
    "max_position_embeddings": "model.max_context_tokens",
    "rotary_base": "model.rope_theta",
    "tie_word_embeddings": "model.tie_embeddings",
    "attention_bias": "model.qkv_bias",
    "initializer_range": "model.init_std",
    "num_local_experts": "model.moe.num_experts",
    "n_routed_experts": "model.moe.num_experts",
    "num_experts_per_tok": "model.moe.top_k",
    "moe_router_topk": "model.moe.top_k",
    "moe_intermediate_size": "model.moe.expert_intermediate_size",
    "router_aux_loss_coef": "model.moe.aux_loss_weight",
    "moe_aux_loss_coeff": "model.moe.aux_loss_weight",
    "norm_topk_prob": "model.moe.normalize_top_k",
    # data
    "dataset": "data.source",
    "datasets": "data.source",
    "dataset_path": "data.source",
    "data_path": "data.source",
    "data.path": "data.source",
    "train_files": "data.source",
    "tokenizer_path": "data.tokenizer",
    "tokenizer_name": "data.tokenizer",
    "sequence_len": "data.seq_len",
    "sequence_length": "data.seq_len",
    "seq_length": "data.seq_len",
    "max_length": "data.seq_len",
    "max_seq_len": "data.seq_len",
    "max_seq_length": "data.seq_len",
    "cutoff_len": "data.seq_len",
    "block_size": "data.seq_len",
    "sample_packing": "data.packing",
    # train
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "total_steps": "train.steps",
    "train_steps": "train.steps",
    "train_iters": "train.steps",
    "max_train_steps": "train.steps",
    "total_training_steps": "train.steps",
    "epochs": "train.steps",
    "num_epochs": "train.steps",
    "num_train_epochs": "train.steps",
    "batch_size": "train.global_batch_tokens",
    "global_batch_size": "train.global_batch_tokens",
    "train_batch_size": "train.global_batch_tokens",
    "num_tokens_per_train_step": "train.global_batch_tokens",
    "micro_batch_size": _DERIVED,
    "micro_batch_size_per_gpu": _DERIVED,
    "ppo_micro_batch_size_per_gpu": _DERIVED,
    "per_device_train_batch_size": _DERIVED,
    "train_micro_batch_size_per_gpu": _DERIVED,
    "local_batch_size": _DERIVED,
    "gradient_accumulation_steps": _DERIVED,
    "max_tokens_per_gpu": _DERIVED,
    "max_tokens_per_mb": _DERIVED,
    "ppo_max_token_len_per_gpu": _DERIVED,
    "bf16": "train.precision",
    "fp16": "train.precision",
    "dtype": "train.precision",
    "torch_dtype": "train.precision",
    "mixed_precision": "train.precision",
    "torch_compile": "train.compile",
    "gradient_checkpointing": "train.recompute",
    "activation_checkpointing": "train.recompute",
    "activation_checkpoint": "train.recompute",
    "remat": "train.recompute",
    "activation_offloading": "offload.activations",
    "enable_activation_offloading": "offload.activations",
    # optim, sched
    "optimizer": "optim.name",
    "learning_rate": "optim.lr",
    "max_lr": "optim.lr",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "beta1": "optim.betas",
    "beta2": "optim.betas",
    "adam_epsilon": "optim.eps",
    "adam_eps": "optim.eps",
    "wd": "optim.weight_decay",
    "clip_grad": "optim.max_grad_norm",
    "grad_clip": "optim.max_grad_norm",
    "max_norm": "optim.max_grad_norm",
    "gradient_clipping": "optim.max_grad_norm",
    "warmup": "sched.warmup_steps",
    "warmup_ratio": "sched.warmup_steps",
    "lr_warmup_steps": "sched.warmup_steps",
    "num_warmup_steps": "sched.warmup_steps",
    "scheduler": "sched.name",
    "lr_scheduler": "sched.name",
    "lr_scheduler_type": "sched.name",
    "lr_decay_style": "sched.name",
    "min_lr": "sched.min_lr_ratio",
    # numeric
    "check_for_nan_in_loss_and_grad": "numeric.on_nan",
    "terminate_on_nan": "numeric.on_nan",
    "detect_anomaly": "numeric.on_nan",
    "check_for_spiky_loss": "numeric.on_spike",
    "spike_detection": "numeric.on_spike",
    "skip_batches": "numeric.skip_steps",
    "iterations_to_skip": "numeric.skip_steps",
    # parallel, cluster
    "dp": "parallel.replica",
    "ddp": "parallel.replica",
    "data_parallel_size": "parallel.replica",
    "dp_replicate": "parallel.replica",
    "data_parallel_replicate_degree": "parallel.replica",
    "fsdp": "parallel.shard",
    "fsdp_size": "parallel.shard",
    "dp_shard": "parallel.shard",
    "data_parallel_shard_degree": "parallel.shard",
    "gradient_compression": "comms.replica.method",
    "powersgd_rank": "comms.replica.rank",
    "compress_ratio": "comms.replica.ratio",
    "num_gpus": "cluster.num_workers",
    "n_gpus_per_node": "cluster.num_workers",
    "nproc_per_node": "cluster.num_workers",
    "memory_alarm_steps": "watchdog.memory_horizon_steps",
    "num_processes": "cluster.num_workers",
    "world_size": "cluster.num_workers",
    "ray_address": "cluster.address",
    # rl, rollout
    "prompts_per_batch": "rl.prompts_per_step",
    "rollout_batch_size": "rl.prompts_per_step",
    "num_generations": "rl.samples_per_prompt",
    "n_samples_per_prompt": "rl.samples_per_prompt",
    "rollouts_per_example": "rl.samples_per_prompt",
    "rollout.n": "rl.samples_per_prompt",
    "actor_rollout_ref.rollout.n": "rl.samples_per_prompt",
    "max_async_level": "rl.max_staleness",
    "max_head_offpolicyness": "rl.max_staleness",
    "staleness_threshold": "rl.max_staleness",
    "max_prompt_length": "rl.max_prompt_tokens",
    "filter_groups": "rl.dynamic_sampling",
    "reward_funcs": "rl.reward.function",
    "loss_type": "rl.objective.kind",
    "adv_estimator": "rl.objective.kind",
    "epsilon_high": "rl.objective.clip_high",
    "clip_ratio_low": "rl.objective.clip_low",
    "clip_ratio_high": "rl.objective.clip_high",
    "kl_coef": "rl.objective.kl_coefficient",
    "kl_loss_coef": "rl.objective.kl_coefficient",
    "init_kl_coef": "rl.objective.kl_coefficient",
    "max_completion_length": "rollout.max_new_tokens",
    "max_response_length": "rollout.max_new_tokens",
    "rollout_max_response_len": "rollout.max_new_tokens",
    "max_concurrent_rollouts": "rollout.prompts_per_worker",
    # checkpoint, run
    "save_steps": "checkpoint.interval_steps",
    "save_freq": "checkpoint.interval_steps",
    "save_interval": "checkpoint.interval_steps",
    "freq_steps": "checkpoint.interval_steps",
    "interval": "checkpoint.interval_steps",
    "interval_secs": "checkpoint.interval_s",
    "freq_secs": "checkpoint.interval_s",
    "save_total_limit": "checkpoint.keep_last",
    "keep_latest_k": "checkpoint.keep_last",
    "async": "checkpoint.blocking",
    "async_mode": "checkpoint.blocking",
    "async_save": "checkpoint.blocking",
    "output_dir": "run.dir",
    "save_dir": "run.dir",
    "checkpoint.dir": "run.dir",
    "checkpoint.folder": "run.dir",
    "default_local_dir": "run.dir",
    "resume_from_checkpoint": "run.resume",
    "resume_mode": "run.resume",
    "resume_if_exists": "run.resume",
    "load": "run.resume",
    "project_name": "run.project",
    "wandb_project": "run.project",
    "experiment_name": "run.name",
    "trial_name": "run.name",
    "run_name": "run.name",
}

NOTES: dict[str, str] = {
    "gradient_accumulation_steps": "the number of rounds follows from it",
    "micro_batch_size": "give tokens, not sequences",
    "per_device_train_batch_size": "give tokens, not sequences",
    "batch_size": "give tokens, not sequences",
    "global_batch_size": "give tokens, not sequences",
    "train_batch_size": "give tokens, not sequences",
    "epochs": "steps = epochs × tokens of the data / train.global_batch_tokens",
    "num_epochs": "steps = epochs × tokens of the data / train.global_batch_tokens",
    "num_train_epochs": "steps = epochs × tokens of the data / train.global_batch_tokens",
    "warmup_ratio": "give steps, not a share",
    "min_lr": "give the last learning rate over the peak",
    "async": "the opposite: saving is asynchronous unless it is true",
    "async_mode": "the opposite: saving is asynchronous unless it is true",
    "async_save": "the opposite: saving is asynchronous unless it is true",
    "bf16": "write `bf16`, `fp32` or `auto`",
}
"""What else to know when the name alone would mislead."""


def unknown_key(key: str, table: KeyTable) -> str:
    """What to say about a key that is not in the table: the nearest known key, or all of them."""
    name = key.rsplit(".", 1)[-1]
    meant = _meant(key, name, table)
    if meant is not None:
        note = NOTES.get(name)
        return f"unknown key; did you mean {meant}?" + (f" ({note})" if note else "")
    section = key.rpartition(".")[0]
    if section not in table.sections:
        section = ""
    siblings = [child.rsplit(".", 1)[-1] for child in table.children(section)]
    where = f"`{section}` has" if section else "sections are"
    return f"unknown key; {where} {', '.join(siblings)}"


def _meant(key: str, name: str, table: KeyTable) -> str | None:
    section = key.rpartition(".")[0]
    siblings = {child.rsplit(".", 1)[-1]: child for child in table.children(section)}
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.75)
    # A typo of a neighbour is likelier than a word from elsewhere, unless the word is exact.
    alias = ALIASES.get(key) or ALIASES.get(name)
    same_name = [known for known in table.leaves if known.rsplit(".", 1)[-1] == name]
    if alias is not None and alias in table and not (close and close[0] == name):
        return alias
    if close:
        return siblings[close[0]]
    if len(same_name) == 1:
        return same_name[0]
    everywhere = difflib.get_close_matches(key, table.leaves, n=1, cutoff=0.75)
    if everywhere:
        return everywhere[0]
    by_name = {known.rsplit(".", 1)[-1]: known for known in reversed(list(table.leaves))}
    last = difflib.get_close_matches(name, by_name, n=1, cutoff=0.8)
    return by_name[last[0]] if last else None
