"""Use what a run has learned: generate text, or export it as a Hugging Face folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from trainer.checkpoint.folder import list_complete
from trainer.checkpoint.loading import choose_loadable, read_tensors
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError, RecipeError
from trainer.generate import generate
from trainer.model.config import Architecture
from trainer.model.decoder import Decoder
from trainer.model.hf_weights import write_hf_folder
from trainer.run_folder import RunFolder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

SAMPLE_TOKENS = 96

MAX_SHARD_BYTES = 5 * 10**9
"""Largest file of an exported model, as hubs have it."""

_MODEL = "model."


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A whole checkpoint of a run."""

    folder: RunFolder
    path: Path
    step: int
    architecture: Architecture


def open_run(run: str, step: int | None) -> Trained:
    """The checkpoint of `step`, or the newest that is whole.

    Raises RecipeError where there is no such run or step, DataError where nothing can be loaded.
    """
    folder = RunFolder(Path(run).expanduser())
    if not folder.root.is_dir():
        raise RecipeError(f"there is no run folder {run}; give its path, such as runs/quickstart")
    complete = list_complete(folder.checkpoints)
    if not complete:
        raise DataError(f"{run} has no complete checkpoint yet; train it for longer")
    candidates = [path for at, path in complete if step in (None, at)]
    if not candidates:
        kept = ", ".join(str(at) for at, _ in reversed(complete))
        raise RecipeError(f"{run} has no checkpoint of step {step}; it has steps {kept}")
    chosen = choose_loadable(candidates, None)
    architecture = TypeAdapter(Architecture).validate_python(chosen.manifest.meta["architecture"])
    return Trained(
        folder=folder, path=chosen.path, step=chosen.manifest.step, architecture=architecture
    )


def load_model(trained: Trained, device: torch.device) -> Decoder:
    """The model with its weights, ready for inference."""
    with torch.device("meta"):
        model = Decoder(trained.architecture)
    model.to_empty(device=device)
    state = model.state_dict()
    for name, tensor in read_tensors(trained.path, _MODEL):
        state.pop(name.removeprefix(_MODEL)).copy_(tensor)
    if state:
        raise DataError(f"{trained.path} lacks {', '.join(sorted(state))}")
    return model.eval()


def continuation(
    trained: Trained,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[str]:
    """Pieces of text that follow the prompt, as they are made.

    Raises RecipeError for sampling settings out of range, and for a prompt without tokens or too
    long for the model.
    """
    _require_sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    tokenizer = Tokenizer.load(trained.folder.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(trained, device)
    (encoded,) = tokenizer.encode_batch([prompt])
    prompt_tokens = [*tokenizer.prefix_ids, *encoded.tolist()]
    tokens = generate(
        model,
        prompt_tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        eos_id=tokenizer.eos_id,
        context=trained.architecture.max_context_tokens,
    )
    yield from whole_characters(prompt_tokens, tokens, tokenizer)


def show_sample(run: Path, prompt: str) -> None:
    """Print what the run's newest weights write after `prompt`."""
    pieces = continuation(
        open_run(str(run), None),
        prompt,
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.7,
        top_p=0.95,
        seed=0,
    )
    print(f"a sample, prompted with {prompt!r}:\n{prompt}", end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def whole_characters(
    prompt_tokens: Sequence[int], tokens: Iterator[int], tokenizer: Tokenizer
) -> Iterator[str]:
    """Text of the tokens after the prompt's; a character spread over tokens waits for its last.

    All tokens are decoded together each time, because some tokenizers drop the space before the
    first one.
    """
    seen = list(prompt_tokens)
    shown = tokenizer.decode(seen)
    text = shown
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    if text != shown:
        yield text[len(shown) :]


def export(trained: Trained, to: Path, *, dtype: str) -> None:
    """Write config, weights and tokenizer as a Hugging Face folder.

    Raises RecipeError where the folder is not empty or no family there has this architecture.
    """
    write_hf_folder(
        to,
        trained.architecture,
        (
            (name.removeprefix(_MODEL), tensor)
            for name, tensor in read_tensors(trained.path, _MODEL)
        ),
        dtype=DTYPES[dtype],
        max_shard_bytes=MAX_SHARD_BYTES,
        tokenizer_folder=trained.folder.tokenizer,
    )


def _require_sampling(*, max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise RecipeError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0.0:
        raise RecipeError(f"--temperature must not be negative, got {temperature}; 0 is greedy")
    if not 0.0 < top_p <= 1.0:
        raise RecipeError(f"--top-p must lie in (0, 1], got {top_p}; 1 keeps every token")
