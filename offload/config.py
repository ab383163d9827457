"""Where optimizer states and activations live, as the recipe says it. Pure data: neither torch nor
ray."""

from dataclasses import dataclass
from typing import Literal

OptimizerPlacement = Literal["auto", "device", "host", "interleaved", "disk"]

ActivationPlacement = Literal["auto", "keep", "recompute", "selective", "swap"]
ActivationTier = Literal["auto", "host", "disk"]


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """Optimizer states and activations outside device memory. Losses do not depend on it."""

    optimizer: OptimizerPlacement = "auto"
    """`device`: states beside the weights. `host`: states and update in host memory.
    `interleaved`: states in host memory, a share of the updates on the device. `disk`: states in
    files under `disk`. `auto`: the fastest that fits."""

    share: float | Literal["auto"] = "auto"
    """Share of the subgroups that the device updates; `auto` balances measured rates."""

    disk: str | tuple[str, ...] = ()
    """A directory on a local disk, or a list of them over which bytes are striped; for states and
    activations."""

    disk_share: float = 1.0
    """Share of the states that goes to disk; the rest stays in host memory."""

    disk_depth: int | Literal["auto"] = "auto"
    """Requests outstanding per directory; `auto` measures."""

    disk_timeout_s: float = 120.0
    """A disk that does not answer for this long has failed."""

    subgroup_parameters: int = 25_000_000
    """Parameters fetched, updated and flushed at a time."""

    buffers: int = 3
    """Staging buffers of one subgroup each; more hide more latency and cost memory."""

    host_memory_fraction: float = 0.9
    """Share of the free host memory that the plan may use."""

    activations: ActivationPlacement = "auto"
    """`keep`: saved tensors stay. `recompute`: blocks are run again in backward, as with
    `train.recompute`. `selective`: input and attention output of a block stay, the rest is
    computed again. `swap`: these two leave for `activation_tier` until backward, of the rest
    `activation_share` leaves. `auto`: the fastest that fits, chosen for every step."""

    activation_share: float | Literal["auto"] = "auto"
    """`swap`: of the tensors that could be computed again, the share of the tokens for which they
    leave instead; `auto` hides the copies under a block's forward."""

    activation_tier: ActivationTier = "auto"
    """`host` memory, which needs a device, or `disk`. `auto`: host memory where there is a device
    and room."""

    activation_bytes: int | Literal["auto"] = "auto"
    """`swap`: room for activations on their tier, per rank; what finds none stays. `auto` takes
    what a step needs."""

    activation_min_bytes: int = 1 << 20
    """`selective`, `swap`: smaller tensors stay."""

    activation_kept_blocks: int = 2
    """`swap`: blocks at the end whose activations stay, because backward wants them at once."""

    def __post_init__(self) -> None:
        self._check_activations()
        for key in ("share", "disk_share", "host_memory_fraction"):
            value = {
                "share": 0.0 if self.share == "auto" else self.share,
                "disk_share": self.disk_share,
                "host_memory_fraction": self.host_memory_fraction,
            }[key]
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"offload.{key} must be between 0 and 1, got {value}")
        if self.optimizer == "disk" and not self.disks:
            raise ValueError(
                "offload.optimizer is disk, but offload.disk names no directory; "
                "set offload.disk to a folder on a local disk"
            )
        if self.disk_depth != "auto" and self.disk_depth < 1:
            raise ValueError(f"offload.disk_depth must be positive or auto, got {self.disk_depth}")
        if self.disk_timeout_s <= 0.0:
            raise ValueError(f"offload.disk_timeout_s must be positive, got {self.disk_timeout_s}")
        if self.subgroup_parameters < 1024:
            raise ValueError(
                "offload.subgroup_parameters must be at least 1024, one page of fp32, "
                f"got {self.subgroup_parameters}"
            )
        if self.buffers < 2:
            raise ValueError(
                "offload.buffers must be at least 2, one to fetch and one to update, "
                f"got {self.buffers}"
            )

    @property
    def disks(self) -> tuple[str, ...]:
        """The directories, however many were named."""
        disk = self.disk
        if isinstance(disk, str):
            return (disk,) if disk else ()
        return disk

    def _check_activations(self) -> None:
        share = self.activation_share
        if share != "auto" and not 0.0 <= share <= 1.0:
            raise ValueError(f"offload.activation_share must be between 0 and 1, got {share}")
        if share != "auto" and self.activations not in ("auto", "swap"):
            raise ValueError(
                f"offload.activation_share is {share}, but offload.activations is "
                f"{self.activations}; set it to swap or auto, or drop the share"
            )
        if self.activation_tier == "disk" and not self.disks:
            raise ValueError(
                "offload.activation_tier is disk, but offload.disk names no directory; "
                "set offload.disk to a folder on a local disk"
            )
        if self.activation_bytes != "auto" and self.activation_bytes < 1:
            raise ValueError(
                f"offload.activation_bytes must be positive or auto, got {self.activation_bytes}"
            )
        for key, value in (
            ("activation_min_bytes", self.activation_min_bytes),
            ("activation_kept_blocks", self.activation_kept_blocks),
        ):
            if value < 0:
                raise ValueError(f"offload.{key} must not be negative, got {value}")
