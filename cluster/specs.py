"""What the ranks of one generation are told."""

from collections.abc import Mapping, Sequence

from cluster.means import Means
from cluster.rank import RankSpec
from cluster.reading import Place
from comms.config import RankEnvironment
from trainer.config import JobConfig


def specs_of(
    places: Sequence[Place],
    *,
    port: int,
    generation: int,
    means: Means,
    job: JobConfig,
    project: str,
    explicit: Mapping[str, str],
    memory_folder: str,
    islands: tuple[int, ...] = (),
) -> dict[int, RankSpec]:
    """By rank. The first rank's host has `port` free, where all meet. `islands` are those that go
    on, where some are lost."""
    return {
        place.rank: RankSpec(
            environment=RankEnvironment(
                rank=place.rank,
                world_size=len(places),
                local_rank=place.local_rank,
                local_world_size=place.local_world_size,
                host=place.host,
                master_address=places[0].address,
                master_port=port,
                device_type="cuda" if means.needs.gpus else "cpu",
                threads=means.threads,
                device_index=place.device,
                generation=generation,
                islands=islands,
            ),
            project=project,
            job=job,
            explicit=explicit,
            memory_folder=memory_folder,
        )
        for place in places
    }
