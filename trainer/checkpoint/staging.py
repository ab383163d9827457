"""A copy of this rank's share of the state, so that training may go on while it is written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.checkpoint.shard_file import Piece
from trainer.checkpoint.share import Share, State, local_part


@dataclass(frozen=True)
class Staged:
    """A copy that is complete, on CUDA, once `wait_until_copied` returns."""

    payload: memoryview
    """Bytes in the order of the share's pieces; valid until the next staging."""

    copied: torch.cuda.Event | None

    def wait_until_copied(self) -> None:
        """Wait for copies from the device. Any thread may call it."""
        if self.copied is not None:
            self.copied.synchronize()


class StagingBuffer:
    """Host memory that one share is copied to, kept from save to save.

    It takes as many bytes as the share: for AdamW with fp32 states twelve per parameter this rank
    writes. Pinned if any of the state is on a CUDA device; torch rounds pinned memory up to a
    power of two.
    """

    def __init__(self) -> None:
        self._share: Share | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._places: list[tuple[Piece, Tensor]] = []

    def stage(self, share: Share, state: State) -> Staged:
        """Copy the pieces of `share` out of `state`.

        On CUDA the copies are queued on the current stream and this returns at once: what is queued
        on that stream afterwards may change the state. Raises RuntimeError where memory runs out.
        """
        on_cuda = any(tensor.is_cuda for tensor in state.values())
        if share is not self._share:
            self._allocate(share, pinned=on_cuda)
        with torch.no_grad():
            for piece, place in self._places:
                place.copy_(piece.box.of(local_part(state[piece.name])), non_blocking=True)
        copied = None
        if on_cuda:
            copied = torch.cuda.Event()
            copied.record()
        return Staged(self._buffer.numpy().data, copied)

    def _allocate(self, share: Share, *, pinned: bool) -> None:
        size = share.pieces[-1].end if share.pieces else 0
        self._share, self._places = None, []
        if self._buffer.numel() != size or self._buffer.is_pinned() != pinned:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._places = [
            (piece, self._buffer[piece.begin : piece.end].view(piece.dtype).view(piece.shape))
            for piece in share.pieces
        ]
        self._share = share
