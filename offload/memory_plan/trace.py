"""When the tensors of a piece of PyTorch come and go, for the memory plan.

with MemoryTrace() as trace:
    y = block(x)
requests = trace.requests()
"""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from offload.memory_plan.requests import Request


class MemoryTrace(TorchDispatchMode):
    """Records each storage that an operation makes. Time is the number of operations so far.

    Its clock goes on when it is entered again, so that one trace may cover a forward and, entered
    once more, its backward. Storages that exist before are not recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0
        self._alive: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._ended: list[tuple[int, int, int]] = []
        self._foreign: dict[int, StorageWeakRef] = {}

    @property
    def now(self) -> int:
        """Operations so far."""
        return self._now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for argument in tree_iter((args, kwargs)):
            self._note_foreign(argument)
        result = func(*args, **(kwargs or {}))
        self._collect()
        for output in tree_iter(result):
            if isinstance(output, Tensor) and output.layout == torch.strided:
                self._note(output)
        self._now += 1
        return result

    def requests(self) -> list[Request]:
        """All storages so far; those still alive end after the last operation."""
        self._collect()
        alive = [(begin, self._now, size) for _, begin, size in self._alive.values()]
        return [
            Request(name=f"t{number}", size_bytes=size, begin=begin, end=max(end, begin + 1))
            for number, (begin, end, size) in enumerate(sorted(self._ended + alive))
        ]

    def _note_foreign(self, argument: Any) -> None:
        if not isinstance(argument, Tensor) or argument.layout != torch.strided:
            return
        storage = argument.untyped_storage()
        if storage._cdata not in self._alive:
            self._foreign[storage._cdata] = StorageWeakRef(storage)

    def _note(self, output: Tensor) -> None:
        storage = output.untyped_storage()
        if storage._cdata in self._alive or storage._cdata in self._foreign:
            return
        entry = StorageWeakRef(storage), self._now, storage.nbytes()
        self._alive[storage._cdata] = entry

    def _collect(self) -> None:
        """A storage that is gone ended with the operation before."""
        for key, (storage, begin, size) in list(self._alive.items()):
            if storage.expired():
                del self._alive[key]
                self._ended.append((begin, self._now, size))
        for key, storage in list(self._foreign.items()):
            if storage.expired():
                del self._foreign[key]
