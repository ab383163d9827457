"""AdamW with its states outside device memory, as a training step uses it.

Guarantees, each asserted in tests/trainer/test_offloaded.py:
- on the CPU it gives the bits of `trainer.optim.DeviceAdamW`, with states in memory or on disk;
- gradients stay where their owner put them: buckets and sums find their own tensors again;
- moments have the names and forms of `DeviceAdamW`'s, so that either loads the other's;
- a disk that fails during an update or a save raises InfrastructureError, weights as before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from offload.disk.files import DiskFailure
from offload.disk.tier import DiskTier
from offload.optimizer import InterleavedAdamW
from trainer.config import OptimConfig
from trainer.errors import InfrastructureError
from trainer.model.holder import HasParameters
from trainer.movement import Movement
from trainer.optim import MOMENTS, moment_name, parameter_groups
from trainer.state_plan import StateOptions


class OffloadedAdamW:
    """`InterleavedAdamW` over a model's parameters; an `Optimizer`.

    `tier` holds the disk's share and is closed with this; None keeps all states in host memory.
    Finding non-finite gradients is left to the ranks' vote.
    """

    moment_names = MOMENTS

    def __init__(
        self,
        model: HasParameters,
        config: OptimConfig,
        options: StateOptions,
        tier: DiskTier | None,
    ) -> None:
        self.placement: str = options.placement
        self.share = options.share
        self.movement: Movement | None = None
        self._named = dict(model.named_parameters())
        self._tier = tier
        self._inner = InterleavedAdamW(
            parameter_groups(self._named.values(), config),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            share="auto" if options.share is None else options.share,
            disk=tier,
            disk_share=options.disk_share,
            subgroup_parameters=options.subgroup_parameters,
            buffers=options.buffers,
            stream_gradients=False,
            check_finite=False,
        )

    @property
    def updates(self) -> int:
        return int(next(iter(self._inner.state.values()))["step"].item())

    def update(self, learning_rate: float, *, grad_scale: float, share: float | None) -> None:
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        if share is not None:
            self._inner.set_share(share)
        with self._gradients_kept(), _disk_watched("an update"):
            self._inner.step(grad_scale=grad_scale)
        last = self._inner.last_update
        self.movement = Movement(
            moved_bytes={
                "fetched": last.fetched_bytes,
                "flushed": last.flushed_bytes,
                "disk_read": last.disk_read_bytes,
                "disk_written": last.disk_written_bytes,
            },
            update_s=last.total_s,
            stall_s=last.stall_s,
            device_share=self._inner.share,
        )

    def moments(self) -> dict[str, Tensor]:
        """Copies: eight bytes per parameter of this rank for as long as they are held."""
        with _disk_watched("a save"):
            entries = self._inner.state_dict()["state"]
        return {
            moment_name(moment, name): entries[index][moment]
            for index, name in enumerate(self._names())
            for moment in MOMENTS
        }

    def moments_to_fill(self) -> dict[str, Tensor]:
        """New tensors in host memory, eight bytes per parameter of this rank."""
        return {
            moment_name(moment, name): host_zeros_like(parameter)
            for name, parameter in self._named.items()
            for moment in MOMENTS
        }

    def restored(self, moments: Mapping[str, Tensor], updates: int) -> None:
        state = {
            index: {"step": updates, **{m: moments[moment_name(m, name)] for m in MOMENTS}}
            for index, name in enumerate(self._names())
        }
        with self._gradients_kept(), _disk_watched("loading a checkpoint"):
            self._inner.load_state_dict({"state": state, "param_groups": self._numbered_groups()})

    def close(self) -> None:
        """End transfers, unpin memory and free the disk's space."""
        self._inner.close()
        if self._tier is not None:
            self._tier.close()

    def _names(self) -> list[str]:
        """Names of the parameters in the order of the optimizer's groups."""
        names = {parameter: name for name, parameter in self._named.items()}
        return [names[p] for group in self._inner.param_groups for p in group["params"]]

    def _numbered_groups(self) -> list[dict[str, Any]]:
        numbers = iter(range(len(self._named)))
        return [
            {**group, "params": [next(numbers) for _ in group["params"]]}
            for group in self._inner.param_groups
        ]

    @contextmanager
    def _gradients_kept(self) -> Iterator[None]:
        """Gradients may be views that buckets own: each parameter has its own again afterwards."""
        kept = [(parameter, parameter.grad) for parameter in self._named.values()]
        try:
            yield
        finally:
            for parameter, grad in kept:
                parameter.grad = grad


@contextmanager
def _disk_watched(what: str) -> Iterator[None]:
    try:
        yield
    except DiskFailure as error:
        raise InfrastructureError(
            f"{what} could not move optimizer states: {error}. Weights are those of the step "
            "before; start again, and the run goes on from its last checkpoint"
        ) from error


def host_zeros_like(parameter: nn.Parameter) -> Tensor:
    """fp32 zeros in host memory, distributed as the parameter is."""
    if not isinstance(parameter, DTensor):
        return torch.zeros(parameter.shape)
    return DTensor.from_local(
        torch.zeros(parameter.to_local().shape),
        host_mesh(parameter.device_mesh),
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def host_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks in the same places, for tensors in host memory; nothing is sent over it."""
    if mesh.device_type == "cpu":
        return mesh
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
