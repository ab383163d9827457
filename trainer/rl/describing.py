"""What a run by rewards comes to, in a sentence. Pure."""

from trainer.rl.config import RlConfig, RolloutConfig


def explain(rl: RlConfig, rollout: RolloutConfig, *, steps: int) -> str:
    """How many steps learn by rewards, from how many answers, sampled by whom."""
    first = rl.supervised_steps + 1
    which = f"steps {first:,} to {steps:,}" if first < steps else f"step {steps:,}"
    own, shared = rollout.workers, rollout.colocated_workers
    who = [f"{own} of their own"] if own else []
    who += [f"{shared} beside the ranks"] if shared else []
    return (
        f"{which} by rewards: {rl.prompts_per_step} prompts × {rl.samples_per_prompt} answers of "
        f"up to {rollout.max_new_tokens:,} tokens, at most {rl.max_staleness} updates old; "
        f"processes that sample: {' and '.join(who)}"
    )
