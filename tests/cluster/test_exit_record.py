"""exit.json and the end of a log."""

import json
from pathlib import Path

from cluster.exit_record import LAST_LINES, record_of, record_of_driver, tail, write_exit
from cluster.failure import Failure
from trainer.errors import ExitCode, ResourceError
from trainer.run_folder import RunFolder


def test_a_failure_is_written_with_the_end_of_that_ranks_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = folder.log("worker", 1)
    log.parent.mkdir()
    log.write_text("".join(f"line {number}\n" for number in range(200)))
    failure = Failure(
        kind="died",
        rank=1,
        host="h",
        phase="training",
        step=9,
        error="killed",
        exit_code=ExitCode.INFRASTRUCTURE,
        time_s=5.0,
    )
    write_exit(record_of(failure, folder), folder)
    record = json.loads(folder.exit.read_text())
    assert set(record) == {"code", "cause", "host", "rank", "phase", "step", "last_lines", "time"}
    assert (record["code"], record["cause"], record["rank"]) == (10, "killed", 1)
    assert len(record["last_lines"]) == LAST_LINES
    assert record["last_lines"][-1] == "line 199"


def test_an_error_of_the_driver_blames_no_rank() -> None:
    record = record_of_driver(ResourceError("too small"), "checking", now_s=1.0)
    assert (record.code, record.rank, record.phase) == (ExitCode.RESOURCES, None, "checking")


def test_a_log_that_is_not_there_or_not_text_has_a_tail_all_the_same(tmp_path: Path) -> None:
    assert tail(tmp_path / "absent.log") == ()
    (tmp_path / "odd.log").write_bytes(b"\xff\xfe\nend\n")
    assert tail(tmp_path / "odd.log")[-1] == "end"
