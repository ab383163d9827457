"""The reference model of a run: its weights, and log-probabilities under it.

Its weights come from a folder that the recipe names, or are those with which learning by rewards
began. These are written into the run folder by the first worker that has them, so that a worker
that starts later has the same.

T tokens of all texts, C of a chunk, D model width, V vocabulary.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint.folder import MANIFEST_NAME, list_complete
from trainer.checkpoint.loading import choose_loadable, read_tensors
from trainer.errors import DataError, RecipeError
from trainer.model.decoder import Decoder
from trainer.model.hf_weights import load_hf_weights
from trainer.rl.engine.loading import load_weights
from trainer.run_folder import RunFolder

_CHUNK_TOKENS = 512
"""Tokens whose logits are in memory at a time."""

_MODEL = "model."


class ReferenceModel:
    """Log-probabilities of texts; an `AnswerRules.reference`."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    @torch.inference_mode()
    def __call__(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """[tokens of the text] for each, 0 for its first token."""
        device = next(self._model.parameters()).device
        lengths = [len(text) for text in texts]
        ends = tuple(np.cumsum(lengths).tolist())
        tokens_T = torch.tensor([token for text in texts for token in text], device=device)
        positions_T = torch.cat([torch.arange(length, device=device) for length in lengths])
        hidden_TD = self._model.hidden(tokens_T, positions_T, ends)
        log_p_T = torch.zeros(len(tokens_T))
        for start in range(0, len(tokens_T) - 1, _CHUNK_TOKENS):
            stop = min(start + _CHUNK_TOKENS, len(tokens_T) - 1)
            log_p_T[start + 1 : stop + 1] = self._log_probs(
                hidden_TD[start:stop], tokens_T[start + 1 : stop + 1]
            ).cpu()
        found = [
            log_p_T[end - n : end].numpy().copy() for end, n in zip(ends, lengths, strict=True)
        ]
        for values in found:
            values[0] = 0.0
        return found

    def _log_probs(self, hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        logits_CV = self._model.vocabulary.logits(hidden_CD, self._model.output_weight_VD)
        log_p_CV = logits_CV.float().log_softmax(dim=1)
        return log_p_CV.gather(1, targets_C[:, None]).squeeze(1)


def reference_path(folder: RunFolder) -> Path:
    """Where a run keeps the weights with which it began to learn by rewards."""
    return folder.root / "rl" / "reference.safetensors"


def load_named_reference(model: Decoder, named: str) -> None:
    """Fill `model` from a Hugging Face folder, a run or a checkpoint.

    Raises RecipeError where `rl.reference` is none of these, DataError where it cannot be read or
    is of another architecture.
    """
    path = Path(named).expanduser()
    if (path / "config.json").is_file():
        load_hf_weights(model, path)
        return
    load_weights_of(model, _tensors(_checkpoint(path)), named)


def load_kept_reference(model: Decoder, folder: RunFolder) -> bool:
    """Fill `model` with what the run keeps; False where it keeps nothing."""
    path = reference_path(folder)
    if not path.is_file():
        return False
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it from a backup") from error
    load_weights_of(model, stored.items(), str(path))
    return True


def keep_reference(model: Decoder, folder: RunFolder) -> None:
    """Write the weights into the run folder, whole or not at all."""
    path = reference_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    save_file({name: value.cpu() for name, value in model.state_dict().items()}, aside)
    os.replace(aside, path)


def load_weights_of(model: Decoder, tensors: Iterable[tuple[str, Tensor]], named: str) -> None:
    """Fill `model`. Raises DataError for tensors of another architecture."""
    try:
        load_weights(model, tensors)
    except ValueError as error:
        raise DataError(
            f"rl.reference={named} is not of the architecture that is trained: {error}"
        ) from error


def _checkpoint(path: Path) -> Path:
    if (path / MANIFEST_NAME).is_file():
        return path
    complete = list_complete(RunFolder(path).checkpoints)
    if not complete:
        raise RecipeError(
            f"rl.reference={path} is no folder of a model, a run or a checkpoint; correct it, or "
            "leave it empty for the weights with which learning by rewards begins"
        )
    return choose_loadable([folder for _, folder in complete], None).path


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(path, _MODEL):
        yield name.removeprefix(_MODEL), tensor
