"""A token-wise function whose saved tensors are swapped for its first tokens, and recomputed for
the others before backward needs them.

Guarantees, each asserted in tests/offload/activations/test_regions.py:
- recomputed rows are those of forward, to the bit: where a matrix product of fewer rows rounds
  otherwise, all rows are computed again and the missing ones taken;
- a region is recomputed at most once per backward, only if some of its tensors are not in memory,
  and no further than to the last tensor that is wanted: what follows, a sum over ranks for
  instance, is not repeated;
- a function that saves other tensors the second time, or draws random numbers, is refused.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from offload.activations.engine import ActivationSwap
from offload.activations.records import Handle, Packed, Record
from offload.activations.rows import MIN_CHECKED_ELEMENTS, Autocast, Comparison, Key, RowCheck
from offload.activations.tensors import is_row_major
from offload.disk.files import round_up_to_pages

Outputs: TypeAlias = Tensor | tuple[Tensor, ...]
TokenFn: TypeAlias = Callable[..., Outputs]
"""`fn(rows, *inputs)`: each token alone, tokens in dim 0 of all inputs and outputs. `rows` is the
slice of the tokens that the inputs hold, for what depends on the position."""


@dataclass
class _Forward:
    """What the function saved, in order; None where the tensor is none of the region's own."""

    records: list["weakref.ref[Record] | None"] = field(default_factory=list)
    shapes: list[tuple[object, ...]] = field(default_factory=list)
    originals: list[Tensor | None] = field(default_factory=list)
    row_major: bool = False
    """Whether any of them has a row for each token."""


class Region:
    """One run of `fn` in forward, and its recomputation in backward."""

    def __init__(
        self,
        swap: ActivationSwap,
        fn: TokenFn,
        inputs: Sequence[Tensor],
        *,
        name: str,
        swapped_rows: int,
        hold: Callable[[Tensor], Packed],
        check: RowCheck,
    ) -> None:
        self._swap = swap
        self._fn = fn
        self._rows = inputs[0].shape[0]
        self._swapped_rows = swapped_rows
        self._check = check
        self._inputs = [hold(x) for x in inputs]
        self._wants_grad = [x.requires_grad for x in inputs]
        self._autocast = Autocast(inputs[0].device.type)
        self._saved = _Forward()
        self._holds_originals = False
        self._outputs: dict[int, int] = {}
        self._output_records: dict[int, weakref.ref[Record]] = {}
        self._own: weakref.WeakSet[Record] = weakref.WeakSet()
        self._key: Key = (
            name,
            self._rows,
            swapped_rows,
            *((x.shape[1:], x.dtype, x.device) for x in inputs),
        )

    def forward(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run the function on all tokens; what it returns."""
        self._holds_originals = self._check.wants_originals(self._key)
        with saved_tensors_hooks(self._pack, self._swap.unpack):
            result = self._fn(slice(0, self._rows), *inputs)
        for place, output in enumerate(as_tuple(result)):
            if is_row_major(output, self._rows):
                self._outputs[output.untyped_storage()._cdata] = place
        known = self._check.known(self._key, tuple(self._saved.shapes))
        if self._recomputes and not known and self._holds_originals:
            self._check_rows(inputs)
        self._saved.originals.clear()
        return result

    def pack_output(self, tensor: Tensor) -> Packed | None:
        """What to keep for a tensor that another function saves, if it is one of the outputs."""
        place = self._outputs.get(tensor.untyped_storage()._cdata)
        if place is None:
            return None
        packed = self._pack_rows(tensor, tensor.untyped_storage().nbytes())
        if isinstance(packed, Handle) and packed.record.fill == self.fill:
            self._output_records.setdefault(place, weakref.ref(packed.record))
            self._own.add(packed.record)
        return packed

    def outputs_used(self) -> None:
        """Nobody will save an output any more: their addresses may be given to other tensors."""
        self._outputs.clear()

    def fill(self) -> None:
        """Recompute the rows that the tier does not hold, of all tensors at once."""
        missing = [record for record in self._own if not record.filled or record.restored_N is None]
        for record in missing:
            self._swap.load(record)
        inputs = [self._swap.unpack(packed) for packed in self._inputs]
        for record in missing:
            self._swap.arrive(record)
        whole = not self._check.rows_suffice(self._key, tuple(self._saved.shapes))
        writer = _Writer(
            [record for record in missing if not record.filled], self._rows, self._swapped_rows
        )
        # Outputs exist only at the end of the function.
        stops = not self._output_records
        self._recompute(inputs, whole=whole, take=self._into(writer), stops=stops)
        self._swap.note_recomputed(writer.finish())

    @property
    def _recomputes(self) -> bool:
        # Of shapes alone, and not of what found room: ranks that recompute together agree.
        return self._swapped_rows < self._rows and self._saved.row_major

    def _pack(self, tensor: Tensor) -> Packed:
        entry = None
        if is_row_major(tensor, self._rows):
            self._saved.row_major = True
            packed = self._pack_rows(tensor, tensor.nbytes)
            mine = isinstance(packed, Handle) and packed.record.fill == self.fill
            if isinstance(packed, Handle) and mine and packed.record not in self._own:
                self._own.add(packed.record)
                entry = weakref.ref(packed.record)
        else:
            packed = self._swap.pack(tensor)
        self._saved.records.append(entry)
        self._saved.shapes.append((tensor.shape, tensor.dtype))
        if entry is not None and self._holds_originals:
            self._saved.originals.append(tensor.detach())
        else:
            self._saved.originals.append(None)
        return packed

    def _pack_rows(self, tensor: Tensor, num_bytes: int) -> Packed:
        row_bytes = num_bytes // self._rows
        stored_bytes = min(round_up_to_pages(self._swapped_rows * row_bytes), num_bytes)
        return self._swap.pack(tensor, stored_bytes=stored_bytes, fill=self.fill)

    def _into(self, writer: "_Writer") -> Callable[[int | None, int | None, Tensor, int], None]:
        def take(saved: int | None, output: int | None, tensor: Tensor, first: int) -> None:
            reference = None
            if saved is not None:
                reference = self._saved.records[saved]
            elif output is not None:
                reference = self._output_records.get(output)
            record = None if reference is None else reference()
            if record is not None:
                writer.write(record, tensor, first)

        return take

    def _recompute(
        self,
        inputs: Sequence[Tensor],
        *,
        whole: bool,
        take: Callable[[int | None, int | None, Tensor, int], None],
        stops: bool = False,
    ) -> None:
        """Run the function again on the missing or on all rows; `take` gets each saved tensor, or
        output, with the first row that it holds. `stops` ends it with the last saved tensor."""
        first = 0 if whole else self._swapped_rows
        count = 0

        def pack(tensor: Tensor) -> None:
            nonlocal count
            if count >= len(self._saved.shapes):
                raise RuntimeError(_not_repeated(count + 1, len(self._saved.shapes)))
            take(count, None, tensor, first)
            count += 1
            if stops and count == len(self._saved.shapes):
                raise _LastTensor

        again = [
            x.detach()[first:].requires_grad_(wanted)
            for x, wanted in zip(inputs, self._wants_grad, strict=True)
        ]
        outputs: tuple[Tensor, ...] = ()
        with (
            suppress(_LastTensor),
            torch.enable_grad(),
            self._autocast.restored(),
            saved_tensors_hooks(pack, _unused),
        ):
            outputs = as_tuple(self._fn(slice(first, self._rows), *again))
        if count != len(self._saved.shapes):
            raise RuntimeError(_not_repeated(count, len(self._saved.shapes)))
        for place, output in enumerate(outputs):
            take(None, place, output.detach(), first)

    def _check_rows(self, inputs: Sequence[Tensor]) -> None:
        verdicts = []
        for whole in (True, False):
            compare = Comparison(self._saved.originals, self._swapped_rows)
            self._recompute(inputs, whole=whole, take=compare.take)
            verdicts.append(compare)
        if not verdicts[0].equal:
            raise RuntimeError(
                "a token-wise function gave other values when it was run again; it must draw no "
                "random numbers and read nothing that changes: move dropout into the attention "
                "function, or keep this block"
            )
        enough = verdicts[1].elements >= MIN_CHECKED_ELEMENTS
        self._check.note(
            self._key, tuple(self._saved.shapes), rows_suffice=enough and verdicts[1].equal
        )


class _LastTensor(Exception):
    """Ends a recomputation."""


class _Writer:
    """Puts recomputed rows where their tensors wait for them."""

    def __init__(self, records: Sequence[Record], rows: int, swapped_rows: int) -> None:
        self._missing = set(records)
        self._rows = rows
        self._swapped_rows = swapped_rows
        self._bytes = 0

    def write(self, record: Record, tensor: Tensor, first: int) -> None:
        """Take the rows from `tensor`, which begins with row `first`."""
        if record not in self._missing:
            return
        assert record.restored_N is not None
        row_bytes = record.num_bytes // self._rows
        if tensor.nbytes != row_bytes * (self._rows - first):
            raise RuntimeError(_other_shape(tensor))
        rows_TB = record.restored_N[: record.num_bytes].view(self._rows, row_bytes)
        source_TB = tensor.detach().contiguous().view(self._rows - first, -1).view(torch.uint8)
        rows_TB[self._swapped_rows :] = source_TB[self._swapped_rows - first :]
        record.filled = True
        self._missing.discard(record)
        self._bytes += row_bytes * (self._rows - self._swapped_rows)

    def finish(self) -> int:
        """Bytes written. Raises RuntimeError if a tensor got none."""
        if self._missing:
            raise RuntimeError(_not_repeated(0, len(self._missing)))
        return self._bytes


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    """One output as a tuple too."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _unused(_: None) -> Tensor:
    raise RuntimeError("a recomputed graph was run backward; a token-wise function must not do so")


def _not_repeated(now: int, then: int) -> str:
    return (
        f"a token-wise function saved {then} tensors in forward and {now} when it was recomputed; "
        "it must do the same for a part of the tokens as for all"
    )


def _other_shape(tensor: Tensor) -> str:
    return (
        f"recomputation gave a tensor of shape {tuple(tensor.shape)} where forward had another; "
        "a token-wise function must treat each row of dim 0 alone"
    )
