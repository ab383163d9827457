"""EControl (Gao, Islamov, Stich, ICLR 2024, arXiv 2311.05645) and its limits.

Each rank k keeps an error e_k and an estimate h_k of its gradient, and all keep the sum h of the
estimates. With the compressor C and the step's gradient g_k:

    d_k = C(eta e_k + g_k - h_k)
    e_k <- e_k + g_k - h_k - d_k;   h_k <- h_k + d_k;   h <- h + sum d_k

and the optimizer is given h. Without estimates and with eta = 1 this is plain error feedback
(`ef`: the optimizer is given sum d_k), with eta = 0 it is EF21.

Guarantees, each asserted in tests/comms/compression/test_econtrol.py:
- h is the sum of all h_k on every rank, and e_k the sum of g_k - h_k over the steps;
- it converges where plain error feedback does not (heterogeneous least squares).
"""

import torch
from torch import Tensor

from comms.compression.config import CompressionConfig
from comms.compression.contractions import Update, contraction_of
from comms.compression.geometry import Geometry
from comms.compression.method import Phases, Step, poisoned_rows
from comms.compression.state import Slot
from comms.compression.wire import poisoned

_ETA_OF_RATIO = {"top_k": 0.5, "rand_k": 0.25}
"""Feedback as a share of the ratio: twice as much is stable on least squares, four times is not."""

_ETA = 0.1
"""Feedback for compressors that get through more than that."""


class ErrorControl:
    """`econtrol`, `ef` and `ef21` with any contractive compressor, for SGD and AdamW alike."""

    phases = 1

    def __init__(self, config: CompressionConfig) -> None:
        self._config = config
        self._contraction = contraction_of(config)
        self._estimates = config.method != "ef"

    def sent_bytes(self, geometry: Geometry, ranks: int, ratio: float) -> dict[str, int]:
        return {"all_gather": self._contraction.code_bytes(geometry, ratio) * (ranks - 1)}

    def exchange(self, slot: Slot, flat: Tensor, step: Step) -> Phases:
        if step.finite:
            code = self._compress(slot, flat, step)
        else:
            size = self._contraction.code_bytes(step.geometry, step.ratio)
            code = poisoned(torch.zeros(size, dtype=torch.uint8, device=flat.device))
        rows = yield from step.gather(code)
        if poisoned_rows(rows):
            flat.fill_(torch.nan)
            return False
        if self._estimates:
            slot.get("estimate_sum", flat)
        else:
            flat.zero_()
        for row in rows:
            update = self._contraction.decode(row, step)
            if self._estimates:
                update.add_through(slot, "estimate_sum")
            else:
                update.add_to(flat)
        if self._estimates:
            flat.copy_(slot.values["estimate_sum"])
        return True

    def _compress(self, slot: Slot, flat: Tensor, step: Step) -> Tensor:
        """Encode and update this rank's state. `flat` is used up."""
        if self._estimates:
            flat -= slot.get("estimate", flat)
        if self._config.method == "ef21":
            code, update = self._contraction.encode(flat, slot, step)
        else:
            code, update = self._with_error(slot, flat, step)
        if self._estimates:
            update.add_through(slot, "estimate")
        return code

    def _eta(self, ratio: float) -> float:
        if self._config.method == "ef":
            return 1.0
        if self._config.eta is not None:
            return self._config.eta
        share = _ETA_OF_RATIO.get(self._config.contraction)
        return _ETA if share is None else share * ratio

    def _with_error(self, slot: Slot, flat: Tensor, step: Step) -> tuple[Tensor, Update]:
        error = slot.get("residual", flat)
        x = torch.add(
            flat, error, alpha=self._eta(step.ratio), out=step.scratch.get("controlled", flat)
        )
        code, update = self._contraction.encode(x, slot, step)
        unsent = torch.add(error, flat, out=slot.buffer("residual", flat))
        update.add_to(unsent, alpha=-1)
        slot.replace("residual", unsent)
        return code, update
