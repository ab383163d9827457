"""One rank 0 writes to a run folder at a time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.errors import InfrastructureError
from trainer.folder_lock import only_writer

HOLDER = """
import sys, time
from pathlib import Path
from trainer.folder_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_gives_up_in_time_and_says_what_to_do(holder, tmp_path: Path) -> None:
    match = r"still writes to .* after 0\.3 s; end it"
    with pytest.raises(InfrastructureError, match=match), only_writer(tmp_path, wait_s=0.3):
        pass


def test_a_writer_that_is_killed_makes_room(holder, tmp_path: Path) -> None:
    holder.kill()
    began_s = time.monotonic()
    with only_writer(tmp_path, wait_s=20):
        pass
    assert time.monotonic() - began_s < 20


def test_one_after_the_other_in_one_process(tmp_path: Path) -> None:
    for _ in range(2):
        with only_writer(tmp_path, wait_s=0.0):
            assert (tmp_path / ".writer").exists()
