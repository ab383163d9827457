"""The activations of a rank's blocks: kept, swapped or computed again, as each step's plan says.

Guarantees, each asserted in tests/trainer/test_activations.py:
- a policy that was not prepared for is refused;
- a disk that fails during a step raises InfrastructureError, weights as before.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from offload.activations.blocks import BlockSwap
from offload.activations.engine import ActivationSwap
from offload.activations.policy import Tier, parse_policy
from offload.disk.files import DiskFailure
from trainer.errors import InfrastructureError
from trainer.model.decoder import Decoder
from trainer.model.stage import DecoderStages
from trainer.movement import ActivationMovement
from trainer.planner.activations import ActivationRoom


class Activations:
    """Of one model. Without a swap, blocks are kept whole or run again whole."""

    def __init__(
        self,
        model: Decoder | DecoderStages,
        *,
        tier: Tier = "host",
        swap: ActivationSwap | None = None,
        room: ActivationRoom | None = None,
        kept_blocks: int = 0,
    ) -> None:
        """`room` is what the planner is told; None where the recipe leaves nothing to choose."""
        self.room = room
        self._model = model
        self._kept_blocks = kept_blocks
        self._swap = swap
        self._blocks: BlockSwap | None = None
        if swap is not None:
            layers = model.architecture.num_layers
            self._blocks = BlockSwap({tier: swap}, num_blocks=layers)

    def follow(self, policy_text: str) -> None:
        """Do what `parse_policy` reads in the following forwards.

        Raises ValueError where the text is no policy, or one that was not prepared for.
        """
        policy = parse_policy(policy_text, kept_blocks=self._kept_blocks)
        apart = policy.kind in ("selective", "swap")
        if apart and self._blocks is None:
            raise ValueError(
                f"the plan says {policy_text}, but this run keeps blocks or runs them again whole; "
                "set offload.activations to auto, selective or swap"
            )
        self._model.recompute = policy.kind == "recompute"
        self._model.swap = self._blocks if apart else None
        if self._blocks is not None:
            self._blocks.policy = policy

    @contextmanager
    def watched(self, step: int) -> Iterator[None]:
        """Around the rounds of a step: raises InfrastructureError where a disk fails."""
        try:
            yield
        except DiskFailure as error:
            raise InfrastructureError(
                f"step {step} could not move its activations: {error}. Weights are those of the "
                "step before; start again, and the run goes on from its last checkpoint"
            ) from error

    def take_movement(self) -> ActivationMovement | None:
        """What moved since the last call; None where nothing can."""
        if self._swap is None:
            return None
        tier = None if self.room is None else self.room.tier
        stats = self._swap.take_stats()
        moved_bytes = stats.stored_bytes + stats.fetched_bytes
        return ActivationMovement(
            stored_bytes=stats.stored_bytes,
            fetched_bytes=stats.fetched_bytes,
            recomputed_bytes=stats.recomputed_bytes,
            saved_bytes=stats.away_peak_bytes,
            transfer_s=0.0 if tier is None else moved_bytes / tier.bytes_per_s,
            exposed_s=stats.stall_out_s + stats.stall_back_s,
        )

    def close(self) -> None:
        """End transfers, unpin memory and free the disk's space."""
        if self._swap is not None:
            self._swap.close()
