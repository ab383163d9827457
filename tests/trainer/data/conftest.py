"""Small sources and tokenizers that the tests of this folder share."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.bpe import END_OF_TEXT, train_bpe
from trainer.data.config import DataConfig
from trainer.data.corpus import Corpus
from trainer.data.template import CHATML
from trainer.data.tokenising import Filler
from trainer.data.tokenizer import Tokenizer

WORDS = ["the", "of", "a", "model", "token", "trains", "data", "loss", "step", "gradient", "night"]


def random_texts(count: int, *, seed: int = 0, longest_words: int = 120) -> list[str]:
    """Texts of mixed lengths, one of them empty and one a single letter."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, longest_words) for _ in range(count - 2)]
    return ["", "x", *(" ".join(rng.choices(WORDS, k=n)) for n in lengths)]


def random_chats(count: int, *, seed: int = 0) -> list[list[dict[str, str]]]:
    """Conversations of one to three turns."""
    rng = random.Random(seed)

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))}

    return [
        [say(role) for _ in range(rng.randint(1, 3)) for role in ("user", "assistant")]
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., list[str]]:
    """`random_texts`, for tests."""
    return random_texts


@pytest.fixture(scope="session")
def make_chats() -> Callable[..., list[list[dict[str, str]]]]:
    """`random_chats`, for tests."""
    return random_chats


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of 290 tokens."""
    text = train_bpe(random_texts(60), 290)
    return Tokenizer(text, eos_token=END_OF_TEXT, config={"chat_template": CHATML})


@pytest.fixture
def text_source(tmp_path: Path) -> Path:
    """A folder of 40 text files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(random_texts(40)):
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


@pytest.fixture
def chat_source(tmp_path: Path) -> Path:
    """A JSON lines file of 40 conversations."""
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in random_chats(40)))
    return path


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    """A data section with small blocks and a cache of the test's own."""

    def make(source: Path, **values: object) -> DataConfig:
        small = {"block_bytes": 1500, "shuffle_blocks": 2, "seq_len": 32}
        return DataConfig(
            source=str(source), **({"cache_dir": str(tmp_path / "cache")} | small | values)
        )

    return make


@pytest.fixture
def open_filled(tokenizer: Tokenizer) -> Callable[[DataConfig], Corpus]:
    """Open a corpus whose blocks were all made ready by this process."""

    def make(config: DataConfig) -> Corpus:
        corpus = Corpus.open(config, tokenizer, background=False)
        Filler(corpus.assignment).fill(lambda: True)
        return Corpus.open(config, tokenizer, background=False)

    return make
