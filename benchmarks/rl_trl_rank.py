"""The run by rewards of rl.py with TRL's GRPOTrainer, in an environment that has TRL.

    python -m torch.distributed.run --nproc_per_node 2 benchmarks/rl_trl_rank.py TASK.json

Rank 0 writes a line of JSON per step. Loss, clipping and advantages are TRL's defaults (DAPO's
normalisation, clip 0.2, rewards standardised within groups, no reference model), which are those of
Braid's recipe. Checkpoints, gradient checkpointing and bf16 are off: they only cost time here.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trainer.rl.tasks.arithmetic import Arithmetic


class Lines(TrainerCallback):
    """When each step ended, and what its answers were."""

    def __init__(self, path: Path, completions: int) -> None:
        self._path = path
        self._completions = completions
        self._ended_s = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ended_s = time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if not state.is_world_process_zero or "reward" not in logs:
            return
        line = {
            "time": self._ended_s,
            "accuracy": float(logs["reward"]),
            "tokens": float(logs["completions/mean_length"]) * self._completions,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def settings(task: dict[str, Any], ranks: int) -> GRPOConfig:
    """As the task says."""
    return GRPOConfig(
        output_dir=task["folder"],
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=task["prompts"] * task["samples"] // ranks,
        gradient_accumulation_steps=1,
        num_generations=task["samples"],
        max_completion_length=task["new_tokens"],
        max_steps=task["steps"],
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=task["weight_decay"],
        max_grad_norm=1.0,
        seed=task["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    """Train as the file on the command line says."""
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(task["threads"])
    asked = Arithmetic(seed=task["seed"], digits=task["digits"])
    count = task["prompts"] * task["steps"]
    questions = [asked.question(index) for index in range(count)]
    by_text = {question.text: question for question in questions}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [asked.score(by_text[prompt], answer) for prompt, answer in pairs]

    trainer = GRPOTrainer(
        model=task["model"],
        reward_funcs=reward,
        args=settings(task, task["ranks"]),
        train_dataset=Dataset.from_dict({"prompt": [question.text for question in questions]}),
        processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
        callbacks=[Lines(Path(task["out"]), task["prompts"] * task["samples"])],
    )
    trainer.train()


if __name__ == "__main__":
    main()
