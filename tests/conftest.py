"""What holds for every test: one compute thread per process, the same examples in every run, and
processes that are forked from one that has imported everything already."""

import multiprocessing
import os

from hypothesis import settings

# Set before torch is first imported, and inherited by the ranks that tests start: several ranks
# with a thread pool each are slower on a few cores than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("braid", deadline=None, derandomize=True, database=None)
settings.load_profile("braid")

# What test modules import when a process of theirs looks up the function that it runs.
multiprocessing.set_forkserver_preload(
    ["torch.distributed.tensor", "trainer.main", "pytest", "hypothesis"]
)
