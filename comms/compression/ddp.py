"""Compression as a DDP communication hook:

    buckets = DdpBuckets(Exchange(config, group=dist.new_group()), model.module)
    model.register_comm_hook(buckets, ddp_hook)

Guarantees, each asserted in tests/comms/compression/test_ddp.py:
- gradients are averages over the ranks, as DDP users expect, for any number of buckets;
- when DDP rebuilds its buckets after the first step, and on resume, every parameter keeps its own
  state, wherever it now lies.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from comms.compression.exchange import FULL, STEPS, Exchange


class DdpBuckets:
    """An exchange that knows which parameter lies where in DDP's buckets. All ranks make one."""

    def __init__(self, exchange: Exchange, module: nn.Module) -> None:
        self.exchange = exchange
        self._names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
        self._sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        self._layout: dict[int, tuple[str, ...]] = {}
        self._loose: dict[str, Tensor] = {}
        """State of parameters that lie in no bucket yet, as `parameter/name`."""

    def key(self, bucket: dist.GradBucket) -> str:
        """The exchange's key of a bucket, its state in place."""
        names = tuple(self._names[parameter] for parameter in bucket.parameters())
        index = bucket.index()
        if self._layout.get(index, names) != names:
            self._loose = self.state_dict()
            for old in self._layout:
                self.exchange.drop_state(_key(old))
            self._layout.clear()
        if index not in self._layout:
            self._layout[index] = names
            self._put_together(index, names)
        return _key(index)

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's state as `parameter/name`, independent of how DDP cuts its buckets."""
        state = self.exchange.state_dict()
        found = dict(self._loose)
        for index, names in self._layout.items():
            found[STEPS] = state.get(f"{_key(index)}/{STEPS}", torch.tensor(0))
            sizes = [self._sizes[name] for name in names]
            for full in (f for f in FULL if f"{_key(index)}/{f}" in state):
                pieces = state[f"{_key(index)}/{full}"].split(sizes)
                found |= {f"{n}/{full}": piece for n, piece in zip(names, pieces, strict=True)}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state of any bucketing."""
        self._layout.clear()
        self.exchange.load_state_dict({})
        self._loose = {path: value.clone() for path, value in state.items()}

    def _put_together(self, index: int, names: tuple[str, ...]) -> None:
        """Give a bucket the state of its parameters."""
        found = {}
        for full in FULL:
            paths = [f"{name}/{full}" for name in names]
            if all(path in self._loose for path in paths):
                found[full] = torch.cat([self._loose.pop(path) for path in paths])
        if found:
            found[STEPS] = self._loose[STEPS]
            self.exchange.put_state(_key(index), found)


def ddp_hook(buckets: DdpBuckets, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """For `register_comm_hook`, with a `DdpBuckets` as its state."""
    flat = bucket.buffer()
    flat.div_(buckets.exchange.ranks)
    future: torch.futures.Future[Tensor] = torch.futures.Future(
        devices=[flat.device] if flat.is_cuda else None
    )

    def over(error: BaseException | None) -> None:
        if isinstance(error, Exception):
            future.set_exception(error)  # type: ignore[arg-type]
        else:
            future.set_result(flat)

    shapes = [parameter.shape for parameter in bucket.parameters()]
    buckets.exchange.start(buckets.key(bucket), flat, shapes, then=over)
    return future


def _key(index: int) -> str:
    return f"bucket{index}"
