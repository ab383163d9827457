"""The guarantees of cluster/staging.py, and the pure parts of cluster/submit.py."""

from pathlib import Path

import pytest
from ray.job_submission import JobInfo, JobStatus

from cluster.exit_record import ExitRecord, write_exit
from cluster.staging import RECIPE, list_sources, source_root, stage, summary
from cluster.submit import absolute_paths, entrypoint, exit_code_of, written_code
from trainer.config import JobConfig, RunConfig
from trainer.data.config import DataConfig
from trainer.errors import ExitCode, ResourceError
from trainer.run_folder import RunFolder


def tree(root: Path) -> None:
    for name in (
        "trainer/loop.py",
        "trainer/data/corpus.py",
        "trainer/__pycache__/loop.cpython-311.pyc",
        "recipes/quickstart.yaml",
        "recipes/schema.json",
        "trainer/notes.yaml",
        ".git/objects/ab",
        "runs/x/checkpoints/big.bin",
        "tests/test_x.py",
        "secrets.env",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)


def test_only_our_code_and_the_recipe_are_taken(tmp_path: Path) -> None:
    tree(tmp_path / "source")
    files = list_sources(tmp_path / "source")
    stage(files, tmp_path / "source", tmp_path / "staged", "run: {}\n")
    staged = {str(p.relative_to(tmp_path / "staged")) for p in (tmp_path / "staged").rglob("*.*")}
    assert staged == {
        "trainer/loop.py",
        "trainer/data/corpus.py",
        "recipes/quickstart.yaml",
        "recipes/schema.json",
        RECIPE,
    }
    assert staged == {str(file.path) for file in files} | {RECIPE}
    assert (tmp_path / "staged" / RECIPE).read_text() == "run: {}\n"


def test_the_summary_counts_files_and_bytes(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "trainer/loop.py").write_bytes(b"x" * 2038)
    text = summary(list_sources(tmp_path))
    assert text.splitlines()[0] == "working directory: 4 files and recipe.yaml, 2 KiB"
    assert "  trainer/  2 files, 2 KiB" in text


def test_this_tree_is_small_enough_to_send() -> None:
    files = list_sources(source_root())
    assert any(file.path == Path("cluster/worker.py") for file in files)
    assert sum(file.size_bytes for file in files) < 5 * 2**20


def test_the_entrypoint_survives_a_shell() -> None:
    line = entrypoint({"run.dir": "/a b/runs", "cluster.address": "auto"})
    assert line == (
        "exec python -m recipes.cli run recipe.yaml 'run.dir=/a b/runs' cluster.address=auto"
    )


def test_relative_paths_are_made_absolute_for_the_job(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    job = JobConfig(run=RunConfig(name="x"), data=DataConfig(source="texts"))
    assert absolute_paths(job, tmp_path) == {
        "run.dir": str(tmp_path / "runs"),
        "data.source": str(tmp_path / "texts"),
    }
    fixed = JobConfig(run=RunConfig(name="x", dir="/shared/runs"))
    assert absolute_paths(fixed, tmp_path) == {"run.dir": "/shared/runs"}


def test_exit_codes_of_jobs() -> None:
    def info(status: JobStatus, code: int | None = None) -> JobInfo:
        return JobInfo(status=status, entrypoint="x", driver_exit_code=code)

    assert exit_code_of(info(JobStatus.SUCCEEDED, 0), None) is ExitCode.DONE
    assert exit_code_of(info(JobStatus.FAILED, 4), None) is ExitCode.DATA
    assert exit_code_of(info(JobStatus.FAILED, 99), None) is ExitCode.INFRASTRUCTURE
    assert exit_code_of(info(JobStatus.STOPPED), None) is ExitCode.STOPPED
    assert exit_code_of(info(JobStatus.FAILED, 1), ExitCode.NUMERIC) is ExitCode.NUMERIC


def test_a_job_whose_python_lacks_braid_says_what_to_do() -> None:
    info = JobInfo(status=JobStatus.FAILED, entrypoint="x", driver_exit_code=1)
    with pytest.raises(ResourceError, match="activate the environment that has it before `ray"):
        exit_code_of(info, None)


def test_only_an_exit_record_of_this_start_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert written_code(folder, since_s=0.0) is None
    record = ExitRecord(
        code=ExitCode.DATA,
        cause="x",
        host=None,
        rank=None,
        phase="training",
        step=3,
        last_lines=(),
        time=100.0,
    )
    write_exit(record, folder)
    assert written_code(folder, since_s=99.0) is ExitCode.DATA
    assert written_code(folder, since_s=101.0) is None
