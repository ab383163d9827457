"""Sum gradients over a group, bucket by bucket, while backward is still running.

Each bucket is one flat tensor, and the gradients are views into it: nothing is packed or copied,
and zeroing, scaling and norms run once per bucket instead of once per parameter.

Guarantees, each asserted in tests/comms/test_buckets.py:
- after `finish`, every gradient is the sum over the ranks of the group, bitwise equal on all;
- buckets are exchanged in the same order on every rank, whatever order gradients arrive in, and
  also where a parameter got no gradient on some rank;
- without `last`, nothing is sent and gradients add up.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from comms.compression.flat import FlatGradient, Piece
from comms.ledger import Ledger
from comms.telemetry.recorder import UNRECORDED
from comms.volume import all_reduce_bytes


class Pending(Protocol):
    """A sum under way."""

    def wait(self) -> object:
        """Return once the sum is in place."""


class BucketExchange(Protocol):
    """Something that sums flat gradients over ranks and counts its own bytes, such as
    `comms.compression.exchange.Exchange`."""

    def start(self, key: str, flat: Tensor, shapes: Sequence[Sequence[int]]) -> Pending:
        """Begin to sum `flat` in place; `shapes` are those of the tensors in it, in order."""


class _Bucket:
    """One flat gradient and the exchange that is under way on it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first = parameters[0]
        self.flat = torch.zeros(
            sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device
        )
        self.parameters = parameters
        self.missing = len(parameters)
        self.work: Pending | None = None
        self.token = UNRECORDED
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.grad = self.flat[start:end].view_as(parameter)
            start = end

    def layout(self) -> FlatGradient:
        """What lies where in `flat`."""
        starts = accumulate((p.numel() for p in self.parameters), initial=0)
        pieces = (Piece(p, at, p.numel()) for p, at in zip(self.parameters, starts, strict=False))
        shapes = tuple(tuple(p.shape) for p in self.parameters)
        return FlatGradient(self.flat.numel(), shapes, tuple(pieces))


class GradientBuckets:
    """Gradients of replicated parameters, summed over `group` (alone: kept as they are), by
    `exchange` where one is given.

    All ranks of the group call `start_round`, run backward, and after the last round `finish`.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        group: dist.ProcessGroup | None,
        bucket_bytes: int,
        ledger: Ledger,
        axis: str = "replica",
        exchange: BucketExchange | None = None,
    ) -> None:
        self._group = group
        self._exchange = exchange
        self._ranks = 1 if group is None else group.size()
        self._ledger = ledger
        self._axis = axis
        # Backward reaches the last parameters first, so their bucket comes first.
        self._buckets = [_Bucket(p) for p in _split(list(reversed(parameters)), bucket_bytes)]
        self._next = 0
        self._last = False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, bucket=bucket: self._arrived(bucket)
                )

    def flat_gradients(self) -> dict[str, FlatGradient]:
        """What lies in each bucket, by the key under which it is exchanged."""
        return {_key(n): bucket.layout() for n, bucket in enumerate(self._buckets)}

    def start_round(self, *, last: bool) -> None:
        """Before each forward and backward; on the last one of a step, sums are exchanged."""
        self._last = last
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish(self) -> None:
        """After the last backward of a step: wait until all sums are there."""
        for bucket in self._buckets:
            bucket.missing = 0
        self._send_ready()
        for bucket in self._buckets:
            if bucket.work is not None:
                with self._ledger.waiting(bucket.token):
                    bucket.work.wait()
                bucket.work, bucket.token = None, UNRECORDED

    def squared_norm(self) -> Tensor:
        """This rank's share of the sum of squares of all gradients, a 0-dim fp32 tensor on their
        device: the ranks of the group hold the same gradients, and their shares add up."""
        norms = [torch.linalg.vector_norm(b.flat, dtype=torch.float32) for b in self._buckets]
        return torch.stack(norms).square().sum() / self._ranks

    def scale(self, factor: float) -> None:
        """Multiply all gradients in place."""
        torch._foreach_mul_([bucket.flat for bucket in self._buckets], factor)

    def zero(self) -> None:
        """Set all gradients to zero; they stay where they are."""
        torch._foreach_zero_([bucket.flat for bucket in self._buckets])

    def _arrived(self, bucket: _Bucket) -> None:
        bucket.missing -= 1
        if self._last:
            self._send_ready()

    def _send_ready(self) -> None:
        """Send complete buckets, but never one before its predecessor."""
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._send(self._buckets[self._next])
            self._next += 1

    def _send(self, bucket: _Bucket) -> None:
        if self._group is None or self._ranks == 1:
            return
        if self._exchange is not None:
            shapes = [parameter.shape for parameter in bucket.parameters]
            bucket.work = self._exchange.start(_key(self._next), bucket.flat, shapes)
            return
        payload_bytes = bucket.flat.numel() * bucket.flat.element_size()
        sent_bytes = all_reduce_bytes(payload_bytes, self._ranks)
        bucket.token = self._ledger.begin(self._axis, "all_reduce", sent_bytes, self._group)
        bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)


def _key(number: int) -> str:
    return f"bucket{number}"


def _split(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Cut the list into runs of one dtype and at most `bucket_bytes`, or a single parameter."""
    runs: list[list[nn.Parameter]] = []
    room_bytes = 0
    for parameter in parameters:
        size_bytes = parameter.numel() * parameter.element_size()
        same_dtype = bool(runs) and runs[-1][0].dtype == parameter.dtype
        if not same_dtype or size_bytes > room_bytes:
            runs.append([])
            room_bytes = bucket_bytes
        runs[-1].append(parameter)
        room_bytes -= size_bytes
    return runs
