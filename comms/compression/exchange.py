"""Compressed sums of gradients over the ranks of a group.

On a DDP model, which gets averages as usual:

    exchange = Exchange(CompressionConfig(method="econtrol", ratio=0.01), group=dist.new_group())
    model.register_comm_hook(DdpBuckets(exchange, model.module), ddp_hook)

The group must be used by nothing else, as its collectives run on another thread. With
`method="dgc", momentum=0.9` the optimizer must apply no momentum: see comms/compression/sgd.py.

Guarantees, each asserted in tests/comms/compression/test_exchange.py:
- all ranks get the same sums, bitwise, for every method;
- the bytes counted are those of the formulas;
- a gradient that is not finite gives NaN on all ranks and changes the state of none;
- after `rollback`, or where a rank was lost, the state is that of the last committed step;
- the method may change from step to step: what was not sent yet is sent by the next one.
"""

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from comms.compression.config import CompressionConfig, StepChoice, begins_dense, ratio_at
from comms.compression.dense import Dense, reduce_dense_runs
from comms.compression.flat import FlatGradient
from comms.compression.geometry import Geometry, cut
from comms.compression.method import Method, Phases, Scratch, Step, recorded
from comms.compression.methods import method_of, sent_bytes
from comms.compression.momentum import Momentum
from comms.compression.ring import RingOrder, ring_of
from comms.compression.runner import Pending, Runner
from comms.compression.state import Slot
from comms.compression.two_level import inside_bytes, over_hosts, shard_numel
from comms.ledger import Ledger

logger = logging.getLogger("braid")

STEPS = "steps"
"""Name under which a state dict holds the committed steps of a key."""

FULL = ("residual", "velocity", "estimate", "estimate_sum")
"""State that has one entry per entry of the gradient."""


class Exchange:
    """Sums flat gradients over `group`, each under a key of its own, compressed.

    With `inside`, the ranks of one host, gradients are summed dense there first, and `group` holds
    the ranks of the same place on each host. All ranks make it, and call `start` with the same keys
    in the same order. What a rank keeps takes 8 bytes per element for error feedback and 16 for
    `dgc` and `econtrol`, with the copies that a dropped step falls back to.
    """

    def __init__(
        self,
        config: CompressionConfig,
        *,
        group: dist.ProcessGroup,
        inside: dist.ProcessGroup | None = None,
        ledger: Ledger | None = None,
        axis: str = "replica",
        background: bool = True,
    ) -> None:
        self._config = self._step_config = config
        self._method = method_of(config)
        self._momentum = Momentum(config.momentum, config.nesterov)
        self._dense = Dense(torch.float32, self._momentum)
        self._group = group
        self._inside = inside
        self._ledger = ledger
        self._axis = axis
        self._slots: dict[str, Slot] = {}
        self._scratch = Scratch()
        self._runner = Runner(background=background)
        self._ring: tuple[int, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks whose gradients are summed."""
        return self._group.size() * (1 if self._inside is None else self._inside.size())

    def start(
        self,
        key: str,
        flat: Tensor,
        shapes: Sequence[Sequence[int]] | None = None,
        then: Callable[[BaseException | None], None] | None = None,
    ) -> Pending:
        """Begin to sum a flat fp32 gradient over the ranks, in place.

        `shapes` are those of the tensors in it, one after another: vectors and small ones then
        travel uncompressed, and low-rank methods know their matrices. `then` is called when it is
        over, with the error or None, perhaps on another thread. Raises ValueError where `flat` is
        not a contiguous fp32 vector, or the shapes are not those of it.
        """
        if flat.dtype != torch.float32 or flat.ndim != 1 or not flat.is_contiguous():
            raise ValueError(
                f"A gradient of dtype {flat.dtype} and shape {tuple(flat.shape)} was passed under "
                f"{key!r}; it must be a contiguous fp32 vector."
            )
        geometry = self._geometry(flat.numel(), shapes, self._step_config)
        slot = self._slot(key, geometry.numel)
        steps = slot.steps + slot.open
        ratio = ratio_at(steps, self._step_config)
        method = self._dense if begins_dense(steps, self._step_config) else self._method
        tokens = self._begin(flat.numel(), geometry, ratio, method)
        seed = zlib.crc32(f"{self._config.seed}/{key}/{steps}".encode())
        phases = self._phases(slot, flat, geometry, ratio, seed, method)
        if self._ledger is not None and self._ledger.recorder is not None:
            phases = recorded(phases, self._ledger.recorder, tokens)
        serial = method.phases > 1 or self._inside is not None or bool(self._ring)
        return self._runner.submit(phases, flat, serial=serial, then=then)

    def set_method(self, choice: StepChoice) -> None:
        """Use another method or ratio from the next `start` on; all ranks do so at the same step.

        Errors and momentum are carried over: what an earlier method has not sent yet goes with the
        next, at once where that one is dense. Raises ValueError where momentum does not fit.
        """
        config = self._config.with_choice(choice)
        if config != self._step_config:
            self._step_config, self._method = config, method_of(config)

    def order_ring(self, order: RingOrder) -> None:
        """Let messages pass the ranks of `group` in another order from the next `start` on, as
        `order` says of their world ranks; all ranks do so at the same step.

        What is decoded from messages stays bitwise the same, what is summed on the way is so
        within rounding. Raises ValueError where the order does not name every place once.
        """
        self._ring = ring_of(self._group, order)

    def commit(self) -> None:
        """Keep what the step did to the state. Called after all its sums were waited for; a step
        that was neither committed nor rolled back is committed when the next begins."""
        for slot in self._slots.values():
            slot.commit()

    def rollback(self) -> None:
        """Take a dropped step back. Called after all its sums were waited for or have failed."""
        for slot in self._slots.values():
            slot.rollback()

    def guard(self, wait: Callable[[], object]) -> None:
        """Have the next steps call `wait` before they write to what `state_dict` gives now; for
        whoever reads it on another thread. Called between steps."""
        for slot in self._slots.values():
            slot.guard = wait

    def error_norm(self) -> float:
        """Norm of what this rank has not sent yet, over all gradients. Called between steps."""
        unsent = [s.values["residual"] for s in self._slots.values() if "residual" in s.values]
        return float(torch.stack(torch._foreach_norm(unsent)).norm()) if unsent else 0.0

    def step_bytes(self, choice: StepChoice, flats: Iterable[FlatGradient]) -> int:
        """Bytes that this rank will send over `group` for these gradients with this choice; a
        warm-up or dense beginning of the configuration is not counted."""
        config = self._config.with_choice(choice)
        method, ranks, found = method_of(config), self._group.size(), 0
        for flat in flats:
            geometry = self._geometry(flat.numel, flat.shapes, config)
            found += sum(sent_bytes(method, geometry, ranks=ranks, ratio=config.ratio).values())
        return found

    def reset(self, reason: str) -> None:
        """Forget what was not sent, and say so."""
        if self._slots:
            logger.warning("compression state of %d gradients reset: %s", len(self._slots), reason)
        self._slots.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's state as of the last committed step, as `key/name`; not copied."""
        found = {}
        for key, slot in self._slots.items():
            found[f"{key}/{STEPS}"] = torch.tensor(slot.steps)
            found |= {f"{key}/{name}": value for name, value in slot.committed().items()}
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, copied. Keys whose sizes no longer fit are reset when used."""
        self._slots.clear()
        found: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            key, name = path.rsplit("/", 1)
            found.setdefault(key, {})[name] = value.clone()
        for key, values in found.items():
            self.put_state(key, values)

    def drop_state(self, key: str) -> None:
        """Forget one key, whose state has been read."""
        self._slots.pop(key, None)

    def put_state(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Give one key a state: names as in `state_dict`, without the key. Not copied."""
        slot = self._slots[key] = Slot()
        slot.values |= {name: value for name, value in state.items() if name != STEPS}
        slot.steps = int(state[STEPS])

    def close(self) -> None:
        """End the thread. Sums under way are finished first."""
        self._runner.close()

    def _geometry(
        self, numel: int, shapes: Sequence[Sequence[int]] | None, config: CompressionConfig
    ) -> Geometry:
        """How what this rank exchanges with others of `group` is cut."""
        if self._inside is not None:
            numel, shapes = shard_numel(numel, self._inside.size()), None
        return cut(numel, shapes, config)

    def _slot(self, key: str, numel: int) -> Slot:
        slot = self._slots.setdefault(key, Slot())
        kept = {name: slot.values[name].numel() for name in FULL if name in slot.values}
        if any(size != numel for size in kept.values()):
            logger.warning(
                "compression state of %s reset: it holds %s elements, the gradient %d",
                *(key, sorted(set(kept.values())), numel),
            )
            slot = self._slots[key] = Slot()
        return slot

    def _clip(self, slot: Slot, flat: Tensor, clip_norm: float) -> None:
        """Bound this rank's gradient by the bound on the sum over the root of the ranks
        (arXiv 1712.01887, section 3.3: gradients of ranks are independent). Of other keys, the
        norm is that of their last step."""
        slot.keep("squared_norm", torch.dot(flat, flat))
        norms = [other.values.get("squared_norm") for other in list(self._slots.values())]
        norm = float(sum(float(squared) for squared in norms if squared is not None)) ** 0.5
        limit = clip_norm / self.ranks**0.5
        if norm > limit:
            flat *= limit / norm

    def _begin(self, numel: int, geometry: Geometry, ratio: float, method: Method) -> list[int]:
        """Count and record what one exchange sends. Its collectives of a kind are one record."""
        if self._ledger is None:
            return []
        begin = partial(self._ledger.begin, started=False)
        sent = sent_bytes(method, geometry, ranks=self._group.size(), ratio=ratio)
        tokens = [begin(self._axis, o, count, self._group) for o, count in sent.items()]
        if self._inside is not None:
            axis, sent = f"{self._axis}_inside", inside_bytes(numel, self._inside.size())
            tokens += [begin(axis, o, count, self._inside) for o, count in sent.items()]
        return tokens

    def _phases(
        self,
        slot: Slot,
        flat: Tensor,
        geometry: Geometry,
        ratio: float,
        seed: int,
        method: Method,
    ) -> Phases:
        slot.begin()

        def between_hosts(part: Tensor) -> Phases:
            finite = bool(part.sum().isfinite())
            if finite and self._config.clip_norm is not None:
                self._clip(slot, part, self._config.clip_norm)
            step = Step(geometry, self._group, ratio, seed, finite, self._scratch, self._ring)
            return (yield from _compressed_and_dense(slot, part, step, method, self._momentum))

        if self._inside is None:
            finite = yield from between_hosts(flat)
        else:
            finite = yield from over_hosts(flat, self._inside, between_hosts)
        if not finite:
            flat.fill_(torch.nan)
            slot.rollback()
        return finite


def _compressed_and_dense(
    slot: Slot, flat: Tensor, step: Step, method: Method, momentum: Momentum
) -> Phases:
    """Compress the matrices, and sum the rest beside them in one piece."""
    if not step.geometry.dense:
        return (yield from method.exchange(slot, flat, step))
    dense = reduce_dense_runs(slot, flat, step, momentum)
    dense_work = next(dense)
    finite = True
    if step.geometry.matrices:
        finite = yield from method.exchange(slot, flat, step)
    yield dense_work
    return (yield from dense) and finite
