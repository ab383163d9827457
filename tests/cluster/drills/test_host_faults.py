"""Drills of hosts say what they need before they make any."""

import pytest

from cluster.config import ClusterConfig
from cluster.drills.host_faults import pair_for
from cluster.drills.namespaces import why_not
from trainer.errors import RecipeError, ResourceError


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (ClusterConfig(num_workers=1), "cluster.num_workers=2"),
        (ClusterConfig(gpus_per_worker=1.0), "cluster.gpus_per_worker=0"),
    ],
)
def test_what_does_not_fit_two_hosts_is_refused(config: ClusterConfig, remedy: str) -> None:
    able = why_not() is None
    with pytest.raises(RecipeError if able else ResourceError) as refused, pair_for(config):
        pass
    assert (remedy if able else "as root on Linux") in str(refused.value)
