"""What is trained on, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, how it becomes tokens, and how tokens become sequences."""

    source: str = "python_stdlib"
    """Folder, file or glob; `python_stdlib` is the source code of the running interpreter's
    standard library; `task` is solved questions of rl.task."""

    task_questions: int = 20_000
    """task: how many are made; of a file of questions, no more than it has."""

    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    """File format; `auto` goes by the file name."""

    kind: Literal["pretrain", "chat", "answers"] = "pretrain"
    """`chat` trains on assistant messages only, and `answers` on the second text of documents that
    are a list of two, a question and its answer; other tokens are masked."""

    text_field: str = "text"
    """JSONL and Parquet: the field with the document."""

    messages_field: str = "messages"
    """Chat: the field with the list of {role, content}."""

    tokenizer: str = "auto"
    """Tokenizer file or folder; `auto` takes the model folder's, or trains a byte-level BPE on the
    data once and keeps it; `bytes` has a token for every byte and no others but special ones."""

    vocab_size: int = 4096
    """Size of a tokenizer trained here."""

    seq_len: int = 512
    """Tokens of one packed sequence."""

    packing: Literal["auto", "split", "whole", "single"] = "auto"
    """`split` cuts documents at sequence ends and wastes nothing; `whole` keeps each document in
    one sequence; `single` makes each document a sequence of its own length, cut only where it is
    longer than seq_len. `auto`: split for pretrain, whole otherwise."""

    on_bad: Literal["error", "skip"] = "error"
    """A line that does not parse, a binary file, a document over the limit: stop, or skip and
    count."""

    max_document_bytes: int = 64 * 1024 * 1024
    """Largest document accepted."""

    block_bytes: int = 1024 * 1024
    """Raw bytes tokenised at a time, and the unit in which documents are shuffled. The last
    sequence of a block may be short: for long sequences set it to some 256 bytes per token."""

    shuffle_blocks: int = 8
    """Neighbouring blocks (in shuffled order) whose sequences are mixed."""

    cache_dir: str = "~/.cache/braid"
    """Where tokens and trained tokenizers are kept."""

    def __post_init__(self) -> None:
        for name in (
            "task_questions",
            "vocab_size",
            "seq_len",
            "max_document_bytes",
            "block_bytes",
            "shuffle_blocks",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"data.{name} must be positive, got {getattr(self, name)}")
        if self.vocab_size < 320:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} is too small for a byte-level tokenizer "
                "(256 bytes and the special tokens); choose at least 320"
            )
