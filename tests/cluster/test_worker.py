"""What a process tells of its work, in one without Ray: the class sends all output to a log."""

import json
import subprocess
import sys
import time
from pathlib import Path

from cluster.rank import RankControl, RankSpec
from cluster.reading import Outcome

PROGRAM = """
import json, sys
from cluster.rank import RankSpec
from cluster.worker import TrainWorker
from comms.config import RankEnvironment
from trainer.config import JobConfig

worker = TrainWorker("127.0.0.1", sys.argv[1] + "/log")
spec = RankSpec(
    environment=RankEnvironment.on_this_machine(0, 1, 1),
    project="", job=JobConfig(), explicit={}, memory_folder="",
)
told = []
for work in ("fails", "ends"):
    worker.begin(f"tests.cluster.test_worker:{work}", spec, sys.argv[1] + "/log")
    worker.watch()
    found = worker.read()
    told.append([found.failure and found.failure.error, found.outcome and found.outcome.kind])
with open(sys.argv[1] + "/told.json", "w") as file:
    json.dump(told, file)
"""


class SlowToTellError(Exception):
    """One whose traceback takes a while to write."""

    def __str__(self) -> str:
        time.sleep(0.2)
        return "no memory"


def fails(spec: RankSpec, control: RankControl) -> Outcome:
    time.sleep(0.2)  # Until somebody waits for its end.
    raise SlowToTellError


def ends(spec: RankSpec, control: RankControl) -> Outcome:
    return Outcome(kind="finished", step=1, checkpoint=None)


def test_a_failure_is_there_when_its_work_is_over_and_gone_with_the_next(tmp_path: Path) -> None:
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], check=False)
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, log
    (error, outcome), after = json.loads((tmp_path / "told.json").read_text())
    assert "no memory" in error
    assert outcome is None
    assert after == [None, "finished"]
    assert "Traceback" in log
