"""Where optimizer states live, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal

OptimizerPlacement = Literal["auto", "device", "host", "interleaved", "disk"]


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """Optimizer states outside device memory. Losses do not depend on it."""

    optimizer: OptimizerPlacement = "auto"
    """`device`: states beside the weights. `host`: states and update in host memory.
    `interleaved`: states in host memory, a share of the updates on the device. `disk`: states in
    files under `disk`. `auto`: the fastest that fits."""

    share: float | Literal["auto"] = "auto"
    """Share of the subgroups that the device updates; `auto` balances measured rates."""

    disk: tuple[str, ...] = ()
    """Directories on local disks; states are striped over them."""

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

    def __post_init__(self) -> None:
        for key in ("share", "disk_share", "host_memory_fraction"):
            value = {
                "share": 0.0 if self.share == "auto" else self.share,
                "disk_share": self.disk_share,
                "host_memory_fraction": self.host_memory_fraction,
            }[key]
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"offload.{key} must be between 0 and 1, got {value}")
        if self.optimizer == "disk" and not self.disk:
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
