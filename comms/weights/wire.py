"""Pack pieces of tensors into flat messages, and check and unpack those that arrive.

A message is the pieces in their dtype on the way, padding to a whole word, and two words: the
version, and a digest of everything before. A word is 8 bytes. Changing any one word changes the
digest, and so does leaving out, repeating or exchanging most of them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from comms.weights.blocks import Block
from comms.weights.plan import Message, Piece

DTYPES = {
    "float64": torch.float64,
    "int64": torch.int64,
    "float32": torch.float32,
    "int32": torch.int32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""By the names of `comms.weights.plan.ITEM_BYTES`."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORD_BYTES = 8
_SPAN_WORDS = 1 << 17
"""Words digested at a time: what is made on the way stays in the cache."""


class DamagedMessageError(RuntimeError):
    """A message is not what was sent, or not of this version."""


class Store:
    """Local tensors by name, each in the blocks of whole tensors that they hold.

    `tensors[name][i]` is block `i` of `blocks[name]`, on any device.
    """

    def __init__(
        self, blocks: Mapping[str, Sequence[Block]], tensors: Mapping[str, Sequence[Tensor]]
    ) -> None:
        self._blocks = blocks
        self._tensors = tensors
        for name, held in blocks.items():
            shapes = [tuple(tensor.shape) for tensor in tensors.get(name, ())]
            if shapes != [block.shape for block in held]:
                raise ValueError(
                    f"weight {name} has local parts of shapes {shapes}, but the channel was opened "
                    f"with {[block.shape for block in held]}; open it anew after the layout changed"
                )

    def view(self, piece: Piece) -> Tensor:
        """A piece of one of the tensors."""
        return self.views(piece)[0]

    def views(self, piece: Piece) -> list[Tensor]:
        """The piece in every block that has it: blocks of a rank may overlap."""
        held = zip(self._blocks[piece.name], self._tensors[piece.name], strict=True)
        return [
            block_of(tensor, block.offsets, piece.block)
            for block, tensor in held
            if piece.block.inside(block)
        ]


def block_of(tensor: Tensor, offsets: Sequence[int], wanted: Block) -> Tensor:
    """The block `wanted` as a view of a tensor whose first element is the one at `offsets`."""
    for dim, (first, size) in enumerate(zip(*wanted, strict=True)):
        tensor = tensor.narrow(dim, first - offsets[dim], size)
    return tensor


def message_bytes(payload_bytes: int) -> int:
    """What travels for a payload."""
    return (-(-payload_bytes // WORD_BYTES) + 2) * WORD_BYTES


def pack(
    message: Message,
    dtypes: Mapping[str, str],
    view: Callable[[Piece], Tensor],
    *,
    version: int,
    out: Tensor,
) -> None:
    """Fill `out`, bytes, with the message but for its digest; tensors take their dtype on the
    way."""
    for piece, place in _places(message, dtypes, out):
        place.copy_(view(piece))
    out[message.payload_bytes : -2 * WORD_BYTES].zero_()
    out.view(torch.int64)[-2] = version


def seal(data: Tensor) -> None:
    """Put the digest at the end of a packed message."""
    words = data.view(torch.int64)
    words[-1] = digest(words[:-1])


def unpack(
    message: Message,
    dtypes: Mapping[str, str],
    views: Callable[[Piece], Sequence[Tensor]],
    *,
    version: int,
    data: Tensor,
) -> None:
    """Copy a message's pieces to where they belong.

    Raises DamagedMessageError, and copies nothing, where it is damaged or of another version.
    """
    words = data.view(torch.int64)
    if int(words[-1]) != digest(words[:-1]):
        raise DamagedMessageError(
            f"a message of {message.payload_bytes} bytes from rank {message.sender} does not have "
            "its checksum; it was damaged on the way"
        )
    if int(words[-2]) != version:
        raise DamagedMessageError(
            f"rank {message.sender} sent version {int(words[-2])} of the weights instead of "
            f"{version}"
        )
    for piece, place in _places(message, dtypes, data):
        for target in views(piece):
            target.copy_(place)


def _places(
    message: Message, dtypes: Mapping[str, str], data: Tensor
) -> list[tuple[Piece, Tensor]]:
    """Each piece's part of the message, in its dtype and shape."""
    places, first = [], 0
    for piece in message.pieces:
        dtype = DTYPES[dtypes[piece.name]]
        last = first + piece.block.elements * dtype.itemsize
        places.append((piece, data[first:last].view(dtype).view(piece.block.shape)))
        first = last
    return places


def digest(words: Tensor) -> int:
    """Sum of the words, each times its own odd number, modulo 2^64. int64 [words]."""
    total = 0
    factors = torch.arange(
        1, 2 * min(words.numel(), _SPAN_WORDS), 2, dtype=torch.int64, device=words.device
    )
    for number, span in enumerate(words.split(_SPAN_WORDS)):
        # An odd factor for the span too: spans cannot change places unseen.
        total += (2 * number + 1) * int((span * factors[: span.numel()]).sum())
    return wrapped(total)


def wrapped(number: int) -> int:
    """An int64 that is the number modulo 2^64."""
    number %= 1 << 64
    return number - (1 << 64) if number >= 1 << 63 else number
