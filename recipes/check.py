"""What a recipe comes to before anything is started: batch, parameters, layout, memory."""

import glob
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comms.compression.config import kept_bytes
from parallel.layout import Layout
from recipes.load import LoadedRecipe
from recipes.wording import GIB, count, gib
from trainer.errors import RecipeError
from trainer.model.config import Architecture
from trainer.model.resolve import resolve_architecture
from trainer.model.size import active_parameter_count, parameter_count
from trainer.planner.batch import BatchArithmetic, batch_of
from trainer.rl.describing import explain
from trainer.spread import choose_layout

WEIGHT_BYTES = 4
GRADIENT_BYTES = 4
MOMENT_BYTES = {"adamw": 8, "sgd": 4}
"""fp32 master weight, its gradient, and the optimizer's moments."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The figures of one recipe."""

    name: str
    architecture: Architecture
    batch: BatchArithmetic
    parameters: int
    active_parameters: int
    layout: Layout
    device_bytes: int
    """Memory of one rank."""

    moment_bytes: int
    """Of a parameter, what the optimizer keeps."""

    unsent_bytes: int
    """Of a parameter, what the compression of gradients keeps."""

    states_in: str
    """Where the optimizer's states are to be: `device`, or another place."""

    device_note: str
    """Where that figure comes from."""

    data: str
    """What is read, and whether it is on this machine."""

    rewards: str
    """What is sampled and by whom; empty without rewards."""

    @property
    def state_bytes(self) -> dict[str, int]:
        """Bytes per rank that stay for the whole run. Activations come on top."""
        held = -(-self.parameters // (self.layout.shard * self.layout.tp * self.layout.pp))
        state = {
            "weights": held * WEIGHT_BYTES,
            "gradients": held * GRADIENT_BYTES,
            "optimizer": held * self.moment_bytes if self.states_in == "device" else 0,
        }
        return state | ({"unsent": held * self.unsent_bytes} if self.unsent_bytes else {})

    @property
    def fits(self) -> bool:
        """Whether these bytes alone leave room on the device."""
        return sum(self.state_bytes.values()) < self.device_bytes

    def record(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "name": self.name,
            "batch": {
                **asdict(self.batch),
                "sequences_per_step": self.batch.sequences_per_step,
                "sequences_per_device": self.batch.sequences_per_device,
                "sequences_of_islands": self.batch.sequences_of_islands,
                "rounds": self.batch.rounds,
                "rounds_of_islands": self.batch.rounds_of_islands,
                "idle_slots": self.batch.idle_slots,
            },
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "layout": asdict(self.layout),
            "state_bytes_per_rank": self.state_bytes,
            "device_bytes": self.device_bytes,
            "device_note": self.device_note,
            "optimizer_states_in": self.states_in,
            "fits": self.fits,
            "data": self.data,
            "rewards": self.rewards,
            "architecture": asdict(self.architecture),
        }

    def rows(self) -> list[tuple[str, str]]:
        """For people."""
        state = self.state_bytes
        parts = ", ".join(f"{name} {gib(size)}" for name, size in state.items())
        active = ""
        if self.active_parameters != self.parameters:
            active = f", of which a token passes {count(self.active_parameters)}"
        verdict = (
            "activations come on top"
            if self.fits
            else "does not fit: raise parallel.shard and cluster.num_workers, or keep optimizer "
            "states elsewhere (offload.optimizer)"
        )
        if self.states_in != "device":
            verdict += f"; optimizer states in another place ({self.states_in})"
        return [
            ("batch", self.batch.explain()),
            ("parameters", f"{count(self.parameters)} ({self.parameters:,}){active}"),
            ("layout", self.layout.describe()),
            ("memory per rank", f"{gib(sum(state.values()))} = {parts}; {verdict}"),
            ("device memory", f"{gib(self.device_bytes)}, {self.device_note}"),
            ("data", self.data),
            *([("rewards", self.rewards)] if self.rewards else []),
        ]


def check(loaded: LoadedRecipe, *, device_memory_gib: float) -> CheckReport:
    """Work out the figures. `device_memory_gib` is a GPU's; without GPUs it is this machine's
    memory that counts.

    Raises RecipeError where the parts of the recipe do not fit together.
    """
    recipe = loaded.recipe
    ranks = recipe.cluster.num_workers
    architecture = resolve_architecture(recipe.model, vocabulary_rows(loaded))
    parameters = parameter_count(architecture)
    if recipe.cluster.gpus_per_worker:
        device_bytes = int(device_memory_gib * GIB)
        device_note = "assumed; say otherwise with --device-memory-gib"
    else:
        device_bytes = host_memory_bytes() // ranks
        device_note = "an even part of this machine's memory"
    moment_bytes = MOMENT_BYTES[recipe.optim.name]
    unsent_bytes = kept_bytes(recipe.comms.replica)
    kept = WEIGHT_BYTES + GRADIENT_BYTES + moment_bytes + unsent_bytes
    state_bytes = parameters * kept
    return CheckReport(
        name=recipe.run.name,
        architecture=architecture,
        batch=batch_of(recipe, ranks),
        parameters=parameters,
        active_parameters=active_parameter_count(architecture),
        layout=_layout(loaded, architecture, state_bytes=state_bytes, device_bytes=device_bytes),
        device_bytes=device_bytes,
        device_note=device_note,
        moment_bytes=moment_bytes,
        unsent_bytes=unsent_bytes,
        states_in=recipe.offload.optimizer if recipe.offload.optimizer != "auto" else "device",
        data=_data(recipe.data.source),
        rewards=explain(recipe.rl, recipe.rollout, steps=recipe.train.steps)
        if recipe.rl.enabled
        else "",
    )


def _data(source: str) -> str:
    # Not an error: a recipe is often checked on another machine than it runs on.
    found = source in ("python_stdlib", "task") or any(glob.iglob(os.path.expanduser(source)))
    return source if found else f"{source}, which is not on this machine"


def host_memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def vocabulary_rows(loaded: LoadedRecipe) -> int:
    """Size of the tokenizer that the recipe will use, without reading any data."""
    data, model = loaded.recipe.data, loaded.recipe.model
    if data.tokenizer == "bytes":
        # Only here, so that most recipes are checked without the tokenizer library.
        from trainer.data.tokenizer import byte_tokenizer

        return byte_tokenizer().vocab_size
    source = model.path if data.tokenizer == "auto" else data.tokenizer
    if source is None:
        return data.vocab_size
    # Only here, so that most recipes are checked without the tokenizer library.
    from trainer.data.tokenizer import Tokenizer

    return Tokenizer.load(Path(source)).vocab_size


def dry_build(architecture: Architecture) -> int:
    """Build the model without memory, and count the parameters that it really has."""
    # Torch takes seconds to import, and only this function needs it.
    import torch

    from trainer.model.decoder import Decoder

    with torch.device("meta"):
        model = Decoder(architecture)
    return sum(parameter.numel() for parameter in model.parameters())


def _layout(
    loaded: LoadedRecipe, architecture: Architecture, *, state_bytes: int, device_bytes: int
) -> Layout:
    recipe, origins = loaded.recipe, loaded.origins
    try:
        return choose_layout(
            recipe,
            architecture,
            world_size=recipe.cluster.num_workers,
            state_bytes=state_bytes,
            device_bytes=device_bytes,
            ranks_per_host=recipe.cluster.num_workers,
        )
    except RecipeError as error:
        places = ", ".join(
            f"{key} at {origins[key]}"
            for key in ("parallel.replica", "parallel.shard", "cluster.num_workers")
        )
        raise RecipeError(f"{error} ({places})") from None
