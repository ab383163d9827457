"""When state is kept in host memory, as the recipe says it. Pure data: neither torch nor ray."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class KeepingConfig:
    """Snapshots in shared memory, from which a run goes on without the disk."""

    interval_steps: int | Literal["auto"] = "auto"
    """Steps between snapshots; 0 for none. `auto` is every step where host memory has room for
    them and holds all of the state: not with optimizer states on disk. Else it is none, with an
    event that says why. Several islands need every step, or none."""

    slots: int = 2
    """Snapshots of each rank that are held; more let copies on other hosts lag further behind."""

    replica_hosts: int | Literal["auto"] = "auto"
    """Other hosts that hold copies of each host's snapshots in their memory, so that a host can be
    lost; 0 for none. `auto` is one where there are several hosts and room for it, else none; with
    several islands it is none, since all of them would go back to the copies of one."""

    replica_share: float = 0.03
    """Share of the time in which links between hosts may carry these copies: it says how old they
    are. A copy that takes 1 s is made every 33 s."""

    dir: str = "/dev/shm"
    """Folder in memory on every host, in which each run has a folder of its own."""

    def __post_init__(self) -> None:
        if self.interval_steps != "auto" and self.interval_steps < 0:
            raise ValueError(
                f"keep.interval_steps must not be negative, got {self.interval_steps}; 0 switches "
                "snapshots off"
            )
        if self.slots < 2:
            raise ValueError(
                f"keep.slots must be at least 2, got {self.slots}: one is whole while another is "
                "being written"
            )
        if self.replica_hosts != "auto" and self.replica_hosts < 0:
            raise ValueError(
                f"keep.replica_hosts must not be negative, got {self.replica_hosts}; 0 keeps no "
                "copies on other hosts"
            )
        if not 0 < self.replica_share <= 1:
            raise ValueError(f"keep.replica_share must be in (0, 1], got {self.replica_share}")
        if not self.dir.startswith("/"):
            raise ValueError(
                f"keep.dir={self.dir!r} is relative, and ranks start in folders of their own; "
                "write it as an absolute path"
            )

    @property
    def every_steps(self) -> int:
        """Steps between snapshots where they are made; 0 for never."""
        return 1 if self.interval_steps == "auto" else self.interval_steps

    def replicas_over(self, hosts: int, *, islands: bool = False) -> int:
        """Hosts that are to hold copies of each host's snapshots, where there are `hosts`."""
        if not self.every_steps:
            return 0
        wanted = int(not islands) if self.replica_hosts == "auto" else self.replica_hosts
        return min(wanted, hosts - 1)
