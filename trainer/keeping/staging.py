"""Copies out of device memory beside the device's work."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.keeping.pieces import Placed


class DeviceStaging:
    """Pinned host memory to which the pieces on a CUDA device are copied, on a stream of its own.

    It takes as much host memory as the device's part of a share, from the first use on. Where all
    tensors are in host memory, nothing.
    """

    def __init__(self, placed: Sequence[Placed]) -> None:
        self._placed = placed
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None
        self._places: dict[int, Tensor] = {}

    def begin(self, sources: Mapping[str, Tensor]) -> None:
        """Queue the copies behind what the current stream has been given so far, and return.

        `sources` are local parts by tensor name; those in host memory are left alone.
        """
        on_device = [
            (number, place)
            for number, place in enumerate(self._placed)
            if (source := sources.get(place.piece.name)) is not None and source.is_cuda
        ]
        if not on_device:
            return
        if self._stream is None:
            self._stream, self._copied = torch.cuda.Stream(), torch.cuda.Event()
            self._places = {number: _pinned(place) for number, place in on_device}
        assert self._copied is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), torch.no_grad():
            for number, place in on_device:
                block = place.piece.box.of(sources[place.piece.name])
                self._places[number].copy_(block, non_blocking=True)
            self._copied.record()

    def host_sources(self, sources: Mapping[str, Tensor]) -> list[Tensor]:
        """Each piece in host memory, once copies from the device are through. Any thread may call
        it."""
        if self._copied is not None:
            self._copied.synchronize()
        return [
            self._places[number]
            if number in self._places
            else place.piece.box.of(sources[place.piece.name])
            for number, place in enumerate(self._placed)
        ]


def _pinned(place: Placed) -> Tensor:
    return torch.empty(place.piece.shape, dtype=place.piece.dtype, pin_memory=True)
