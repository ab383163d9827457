"""Processes and hosts, as the recipe says them. Pure data: neither torch nor ray."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig:
    """Seconds that each phase of the start-up may take before the run is given up."""

    placing_s: float = 120.0
    """Until all workers have their place on the cluster."""

    starting_s: float = 180.0
    """Until all worker processes have started and imported what they need."""

    preparing_s: float = 1800.0
    """Until the tokenizer and the index of the data are there."""

    joining_s: float = 120.0
    """Until all ranks have met in the process group."""

    building_s: float = 600.0
    """Until model, optimizer and tokenizer are there."""

    loading_s: float = 1800.0
    """Until a checkpoint or weights are loaded."""

    first_step_s: float = 900.0
    """Until the first step is done."""

    def __post_init__(self) -> None:
        for name in (
            "placing_s",
            "starting_s",
            "preparing_s",
            "joining_s",
            "building_s",
            "loading_s",
            "first_step_s",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"cluster.deadlines.{name} must be positive, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where workers run and what each of them needs."""

    address: str = "local"
    """`local` starts a Ray cluster of this machine for the run; `auto` joins the running one;
    otherwise the address of a head node."""

    num_workers: int = 2
    """Training ranks."""

    spares: int = 0
    """Processes that wait, with everything imported, to take the place of a lost rank. Each
    reserves what a worker does, but for the cores."""

    cpus_per_worker: float = 1.0
    """CPU cores reserved per rank, which is also its number of compute threads."""

    gpus_per_worker: float = 0.0
    """GPUs reserved per rank: 0 trains on the CPU, 1 on CUDA."""

    memory_per_worker_gib: float = 0.0
    """Host memory reserved per rank; 0 reserves none."""

    stop_grace_s: float = 60.0
    """Seconds a stopped run has to save before its processes are ended."""

    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"cluster.num_workers must be at least 1, got {self.num_workers}")
        if self.spares < 0:
            raise ValueError(f"cluster.spares must not be negative, got {self.spares}")
        if self.cpus_per_worker <= 0:
            raise ValueError(
                f"cluster.cpus_per_worker must be positive, got {self.cpus_per_worker}"
            )
        if self.gpus_per_worker not in (0.0, 1.0):
            raise ValueError(
                f"cluster.gpus_per_worker must be 0 or 1, got {self.gpus_per_worker}; a rank "
                "drives one device, so raise cluster.num_workers instead"
            )
        if self.stop_grace_s <= 0:
            raise ValueError(f"cluster.stop_grace_s must be positive, got {self.stop_grace_s}")
