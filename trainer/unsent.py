"""What a rank has not sent yet, to replicas and to other islands, for snapshots in memory.

Guarantees, each asserted in tests/invariants:
- what is kept is what the last committed step left, whatever the next one does meanwhile;
- a run that goes on from it sends the same as one that was not disturbed.
"""

from torch import Tensor

from comms.compression.exchange import STEPS
from comms.config import RankEnvironment
from comms.groups import device_of
from trainer.assembly import Assembly
from trainer.islands.exchange import Islands
from trainer.islands.saved import sent_tensors
from trainer.keeping.loose import Loose
from trainer.replica_state import parameter_names, replica_tensors


class Unsent:
    """Of one rank."""

    def __init__(
        self, assembly: Assembly, environment: RankEnvironment, islands: Islands | None
    ) -> None:
        self._assembly = assembly
        self._environment = environment
        self._islands = islands
        self._names = {} if assembly.replicas is None else parameter_names(assembly)

    @property
    def reserve_bytes(self) -> int:
        """What it takes in every snapshot, at most, but for odds and ends."""
        replicas, found = self._assembly.replicas, 0
        if replicas is not None:
            found += sum(_KEPT_BYTES * flat.numel for flat in replicas.flats.values())
        if self._islands is not None:
            found += max(4 * numel for numel in self._islands.fragment_sizes())
        return found

    def loose(self) -> Loose | None:
        """What it is now; None where there is nothing. Until it is kept, nobody writes to it."""
        replicas, islands = self._assembly.replicas, self._islands
        state = {} if replicas is None else replicas.exchange.state_dict()
        sent = None if islands is None else islands.outer.sent
        if not state and sent is None:
            return None

        def tensors() -> dict[str, Tensor]:
            found = replica_tensors(self._assembly, self._environment.rank, state, self._names)
            if islands is not None and sent is not None:
                fragment, gradient = sent
                found |= sent_tensors(gradient, islands.fragments[fragment])
            return found

        marks = [(k, t.data_ptr()) for k, t in state.items() if not k.endswith(f"/{STEPS}")]
        if sent is not None:
            marks.append((f"{sent[0]}", sent[1].data_ptr()))
        loose = Loose(marks=tuple(marks), tensors=tensors, device=device_of(self._environment))
        if replicas is not None:
            replicas.exchange.guard(loose.kept.wait)
        return loose


_KEPT_BYTES = 12
"""Of each entry of a gradient: error control keeps three numbers."""
