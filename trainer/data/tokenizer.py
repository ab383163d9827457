"""Text to tokens and back, and the Hugging Face folder that a tokenizer is kept in.

Content never becomes control: a document or message that spells a special token out is encoded as
the characters it consists of. Only chat templates may write special tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine

from trainer.data.bpe import END_OF_TEXT, byte_tokens, train_bpe
from trainer.data.cache import digest, locked, make_folder, written_aside
from trainer.data.config import DataConfig
from trainer.data.documents import DocumentReader
from trainer.data.index import SourceIndex, cache_root, open_index
from trainer.data.sample import SAMPLE_VERSION, sample_texts
from trainer.data.template import CHATML
from trainer.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

BYTES = "bytes"
"""What `data.tokenizer` says for one without merges."""

OWN_CONFIG = {"pad_token": END_OF_TEXT, "chat_template": CHATML}
"""What is said of a tokenizer made here."""

Tokens = NDArray[np.int64]


class Tokenizer:
    """A tokenizer.json with what its neighbours in the folder say about it."""

    def __init__(self, text: str, *, eos_token: str, config: dict[str, Any]) -> None:
        """`text` is a tokenizer.json, `config` a tokenizer_config.json."""
        self._text = text
        self._config = config
        self._plain = Engine.from_str(text)
        self._control = Engine.from_str(text)
        for engine in (self._plain, self._control):
            engine.no_padding()
            engine.no_truncation()
        self._plain.encode_special_tokens = True
        eos_id = self._control.token_to_id(eos_token)
        if eos_id is None:
            raise DataError(
                f"the tokenizer's end token {eos_token!r} is not in its vocabulary; correct "
                f"eos_token in {CONFIG_FILE}"
            )
        self.eos_token = eos_token
        self.eos_id: int = eos_id

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._control.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text, such as a begin token; often nothing."""
        ids = self._control.encode("", add_special_tokens=True).ids
        return tuple(ids[:-1] if ids and ids[-1] == self.eos_id else ids)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of the folder, if there is one."""
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    @property
    def special_texts(self) -> dict[str, str]:
        """Texts of the tokens that templates know by name, such as `bos_token`."""
        named = {
            name: _token_text(value)
            for name, value in self._config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        return named | {"eos_token": self.eos_token}

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""
        added = self._control.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @property
    def fingerprint(self) -> str:
        """Name of everything that decides which tokens a document becomes."""
        # Templates may write any named token, also one that has the text of another.
        named = json.dumps(self.special_texts, sort_keys=True)
        parts = (self._text, self.eos_token, self.chat_template or "", named)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[Tokens]:
        """Token ids of each text, nothing added; texts side by side on all cores."""
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def encode_control(self, texts: list[str]) -> list[Tokens]:
        """The same, with special tokens read as such. For text of a template only."""
        encodings = self._control.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `tokens`; bytes that are no UTF-8 become replacement characters."""
        return self._control.decode([int(t) for t in tokens], skip_special_tokens=skip_special)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
        folder = make_folder(Path(folder))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | self._config
        config["eos_token"] = self.eos_token
        with written_aside(folder / CONFIG_FILE) as file:
            file.write(json.dumps(config, indent=2, ensure_ascii=False).encode())
        # Last: whoever finds this file finds the folder complete.
        with written_aside(folder / TOKENIZER_FILE) as file:
            file.write(self._text.encode())

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read a tokenizer.json, given itself or by its folder, and the files beside it.

        Raises DataError where it is missing, damaged, or has no known end token.
        """
        path = Path(path).expanduser()
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"there is no tokenizer at {file}; give a {TOKENIZER_FILE} or a folder with one"
            )
        text = _read(file)
        if "model" not in _object(file, text):
            raise DataError(f"{file} is not a tokenizer: it has no 'model'; replace it")
        config = _neighbour(file, CONFIG_FILE)
        template = file.with_name(TEMPLATE_FILE)
        if template.is_file():
            config["chat_template"] = _read(template)
        return cls(text, eos_token=_find_eos(file, text, config), config=config)


def _find_eos(file: Path, text: str, config: dict[str, Any]) -> str:
    for found in (config, _neighbour(file, "special_tokens_map.json")):
        if found.get("eos_token"):
            return _token_text(found["eos_token"])
    added = {token["id"]: token["content"] for token in json.loads(text).get("added_tokens", ())}
    for name in ("generation_config.json", "config.json"):
        eos = _neighbour(file, name).get("eos_token_id")
        eos = eos[0] if isinstance(eos, list) and eos else eos
        if eos in added:
            return added[eos]
    if END_OF_TEXT in added.values():
        return END_OF_TEXT
    raise DataError(
        f"{file} does not say which token ends a document; put eos_token into a {CONFIG_FILE} "
        "beside it"
    )


def _token_text(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else value["content"]


def _neighbour(file: Path, name: str) -> dict[str, Any]:
    path = file.with_name(name)
    return _object(path, _read(path)) if path.is_file() else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}; replace it") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, not an object; replace it")
    return value


def prepare_tokenizer(config: DataConfig, model_path: str | None) -> Tokenizer:
    """The recipe's tokenizer; `auto` without a model folder trains one, once per data and size.

    Every process may call it, outside any collective: one of a host trains, the others wait and
    read. Raises DataError where there is no tokenizer or no data.
    """
    if config.tokenizer == BYTES:
        return byte_tokenizer()
    if config.tokenizer != "auto":
        return Tokenizer.load(config.tokenizer)
    if model_path is not None:
        return Tokenizer.load(Path(model_path).expanduser() / TOKENIZER_FILE)
    index = open_index(config)
    # The sample is chosen by blocks, so what forms them decides the tokenizer too.
    sample = (index.field, config.kind, config.block_bytes, config.max_document_bytes)
    key = digest(SAMPLE_VERSION, index.scan.fingerprint, sample, config.vocab_size)
    folder = make_folder(cache_root(config) / "tokenizers" / key)
    if not (folder / TOKENIZER_FILE).is_file():
        with locked(folder / "lock", "training a tokenizer"):
            if not (folder / TOKENIZER_FILE).is_file():
                _train(config, index).save(folder)
    return Tokenizer.load(folder)


def byte_tokenizer() -> Tokenizer:
    """A token for every byte, and the special ones."""
    return Tokenizer(byte_tokens(), eos_token=END_OF_TEXT, config=OWN_CONFIG)


def _train(config: DataConfig, index: SourceIndex) -> Tokenizer:
    reader = DocumentReader(index, max_document_bytes=config.max_document_bytes)
    texts = sample_texts(
        reader, index.blocks.count, kind=config.kind, skip_bad=config.on_bad == "skip"
    )
    return Tokenizer(
        train_bpe(texts, config.vocab_size),
        eos_token=END_OF_TEXT,
        config=OWN_CONFIG,
    )
