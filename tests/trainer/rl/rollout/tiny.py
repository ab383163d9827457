"""A run folder, sections, a task and a decoder that are as small as they can be."""

import json
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from parallel.config import ParallelConfig
from trainer.config import RunConfig, TrainConfig
from trainer.data.tokenizer import Tokenizer
from trainer.model.config import ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.init import init_weights
from trainer.model.resolve import resolve_architecture
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.engine.config import EngineConfig
from trainer.rl.engine.engine import Engine
from trainer.rl.engine.request import Sampling
from trainer.rl.rollout.rules import AnswerRules
from trainer.rl.tasks.build import build_task
from trainer.rl.tasks.codec import PlainCodec
from trainer.rl.tasks.config import TaskConfig
from trainer.rl.tasks.prompts import PromptBook
from trainer.rl.tasks.question import Question

END = "<end>"
TASK = TaskConfig(kind="own", factory="tests.trainer.rl.rollout.tiny:Letters")
ENGINE = EngineConfig(block_tokens=4, max_sequences=16, forward_tokens=32, kv_bytes=2**18)
MODEL = ModelConfig(
    hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=24, init_std=0.2
)


class Letters:
    """Asks for the letter a; the score is the share of it."""

    size = None

    def __init__(self, *, seed):
        self._seed = seed

    def question(self, index):
        text = "bcd"[(self._seed + index) % 3] * (1 + index % 2)
        return Question(index=index, text=text, reference={"answer": "a"}, where=f"letter {index}")

    def extract(self, answer):
        return answer[:1] or None

    def score(self, question, answer):
        return answer.count("a") / max(1, len(answer))


def tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:40] + list("abcdefgh")
    vocabulary = {letter: number for number, letter in enumerate(dict.fromkeys([END, *letters]))}
    raw = RawTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([END])
    return Tokenizer(json.dumps(json.loads(raw.to_str())), eos_token=END, config={})


RL = RlConfig(task=TASK, prompts_per_step=4, samples_per_prompt=4, max_prompt_tokens=8)
ROLLOUT = RolloutConfig(max_new_tokens=5, prompts_per_worker=6, engine=ENGINE)


@dataclass(frozen=True, kw_only=True)
class Sections:
    """What a worker reads of a recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = MODEL
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    rl: RlConfig = RL
    rollout: RolloutConfig = ROLLOUT


def sections(folder, **changes) -> Sections:
    """With a run folder that has its tokenizer."""
    run = RunConfig(name="run", dir=str(folder), seed=3)
    tokenizer().save(folder / "run" / "tokenizer")
    return replace(Sections(run=run), **changes)


def decoder(seed=1, model=MODEL) -> Decoder:
    made = Decoder(resolve_architecture(model, tokenizer().vocab_size))
    init_weights(made, seed)
    return made


def engine(model=None, **changes) -> Engine:
    return Engine(decoder() if model is None else model, replace(ENGINE, **changes))


def rules(task=TASK, **changes) -> AnswerRules:
    words = tokenizer()
    codec = PlainCodec(words)
    made = build_task(task, seed=3)
    values = {
        "task_config": task,
        "task": made,
        "codec": codec,
        "book": PromptBook(made, codec, max_prompt_tokens=8),
        "samples": 3,
        "seed": 3,
        "sampling": Sampling(max_new_tokens=6, stop_ids=(words.eos_id,)),
        "longest_tokens": 40,
    }
    return AnswerRules(**values | changes)


def weights(model) -> list[tuple[str, torch.Tensor]]:
    return [(name, value.clone()) for name, value in model.state_dict().items()]
