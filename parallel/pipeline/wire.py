"""What travels between the ranks of a pipeline: activations forward, gradients back.

Guarantees, asserted in tests/parallel/pipeline/test_run.py:
- every byte sent is counted under `pp/send`, and the count is tokens × width × element size per
  boundary between ranks, microbatch and direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from comms.ledger import Ledger


class Arrival:
    """A tensor under way to this rank."""

    def __init__(self, buffer: Tensor, work: dist.Work, ledger: Ledger, token: int) -> None:
        self._buffer = buffer
        self._work = work
        self._ledger = ledger
        self._token = token

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        with self._ledger.waiting(self._token):
            self._work.wait()
        return self._buffer


class _Leaving(NamedTuple):
    """A tensor under way from this rank, which is kept until it has left."""

    work: dist.Work
    tensor: Tensor
    token: int


class Wire:
    """Sends and receives between the ranks of `group`, which all create it together.

    `group` carries what goes to higher ranks and `reverse` what goes to lower ones. On CUDA they
    must be two communicators: NCCL runs the messages of one pair of ranks one after the other, and
    two ranks that both send first would wait for each other. gloo needs one group only.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        *,
        reverse: dist.ProcessGroup | None,
        device: torch.device,
        ledger: Ledger,
    ) -> None:
        if device.type == "cuda" and group.size() > 1 and reverse is None:
            raise ValueError(
                "a pipeline on CUDA needs a second communicator over the same ranks for what goes "
                "to lower ranks; pass it as reverse_group"
            )
        self.rank = group.rank()
        self.size = group.size()
        self._up = group
        self._down = group if reverse is None else reverse
        self._device = device
        self._ledger = ledger
        self._sending: list[_Leaving] = []
        self._meet()

    def send(self, tensor: Tensor, peer: int) -> None:
        """Start to send; the tensor is kept until it has left."""
        self._drop_sent()
        tensor = tensor.contiguous()
        group, link = self._towards(self.rank, peer), (self.rank, peer)
        sent_bytes = tensor.numel() * tensor.element_size()
        token = self._ledger.begin("pp", "send", sent_bytes, group, link=link)
        work = dist.isend(tensor, group=group, group_dst=peer)
        assert work is not None
        self._sending.append(_Leaving(work, tensor, token))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, peer: int) -> Arrival:
        """Start to receive the next tensor that `peer` sends here."""
        buffer = torch.empty(tuple(shape), dtype=dtype, device=self._device)
        group, link = self._towards(peer, self.rank), (peer, self.rank)
        token = self._ledger.expect("pp", "receive", group, link)
        work = dist.irecv(buffer, group=group, group_src=peer)
        assert work is not None
        return Arrival(buffer, work, self._ledger, token)

    def finish(self) -> None:
        """Wait until everything sent has left."""
        for leaving in self._sending:
            with self._ledger.waiting(leaving.token):
                leaving.work.wait()
        self._sending = []

    def _drop_sent(self) -> None:
        under_way = []
        for leaving in self._sending:
            if leaving.work.is_completed():
                self._ledger.ended(leaving.token)
            else:
                under_way.append(leaving)
        self._sending = under_way

    def _towards(self, sender: int, receiver: int) -> dist.ProcessGroup:
        return self._up if sender < receiver else self._down

    def _meet(self) -> None:
        """Let every two neighbours exchange a tensor: NCCL connects two ranks at their first
        message, and blocks until both are there, which in the middle of a step may be never."""
        token = torch.zeros(1, device=self._device)
        neighbours = {tuple(sorted((r, (r + 1) % self.size))) for r in range(self.size)}
        for low, high in sorted(neighbours):
            if low == high or self.rank not in (low, high):
                continue
            for sender, receiver in ((low, high), (high, low)):
                group = self._towards(sender, receiver)
                if self.rank == sender:
                    dist.send(token, group=group, group_dst=receiver)
                else:
                    dist.recv(token, group=group, group_src=sender)
