"""Idle processes that are dead, and one whose connection heals."""

import time

import ray
from ray.exceptions import ActorUnavailableError

from cluster.idle import IdleWatch


class OutOfReach:
    """A process that cannot be reached when it is first asked, as Ray says it."""

    def __init__(self) -> None:
        self._asked = 0

    def process(self) -> int:
        self._asked += 1
        if self._asked == 1:
            raise ActorUnavailableError("the connection broke", None)
        return self._asked

    def asked(self) -> int:
        return self._asked


def test_a_process_out_of_reach_is_asked_again_and_a_dead_one_is_gone(local_cluster: None) -> None:
    actor = ray.remote(OutOfReach).options(num_cpus=0, max_restarts=0).remote()
    watch = IdleWatch(time.monotonic)
    while ray.get(actor.asked.remote()) < 3:
        assert watch.gone({7: actor}) == []
        time.sleep(0.02)
    ray.kill(actor)
    while watch.gone({7: actor}) != [7]:
        time.sleep(0.02)
