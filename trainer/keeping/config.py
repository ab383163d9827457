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
        if not self.dir.startswith("/"):
            raise ValueError(
                f"keep.dir={self.dir!r} is relative, and ranks start in folders of their own; "
                "write it as an absolute path"
            )

    @property
    def every_steps(self) -> int:
        """Steps between snapshots where they are made; 0 for never."""
        return 1 if self.interval_steps == "auto" else self.interval_steps
