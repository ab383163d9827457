"""What holds for every test: one compute thread per process, and the same examples in every run."""

import os

from hypothesis import settings

# Set before torch is first imported, and inherited by the ranks that tests start: several ranks
# with a thread pool each are slower on a few cores than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("braid", deadline=None, derandomize=True, database=None)
settings.load_profile("braid")
