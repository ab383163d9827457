"""A full disk fails a save with the error of a full disk, and harms nothing else."""

import os
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from cluster.drills.disk import FillDisk, harm_in, largest_file_bytes
from cluster.drills.faults import Target
from trainer.checkpoint.manifest import FileEntry, encode, write_manifest
from trainer.errors import InfrastructureError, ResourceError
from trainer.run_folder import RunFolder, append_event

SAVE = """
import sys
folder = sys.argv[1]
sys.stdin.readline()
for _ in range(2):
    try:
        with open(f"{folder}/checkpoints/share", "wb") as file:
            file.write(bytes(30_000_000))
        print("saved", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
    sys.stdin.readline()
"""


def checkpoint(folder: Path, data: bytes) -> Path:
    place = folder / "step-00000010"
    place.mkdir(parents=True)
    (place / "rank-0.safetensors").write_bytes(data)
    files = {"rank-0.safetensors": FileEntry(len(data), zlib.crc32(data))}
    write_manifest(place, encode(step=10, files=files, tensors_json="{}", meta_json="{}"))
    return place


@pytest.mark.parametrize("mounted", [True, False])
def test_a_save_fails_until_it_was_told(tmp_path, monkeypatch, mounted):
    if not mounted:
        monkeypatch.setattr("cluster.drills.disk._mount", lambda folder, num_bytes: False)
    undisturbed, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "full")
    checkpoint(undisturbed.checkpoints, bytes(15_000_000))
    fault = FillDisk()
    fault.prepare(undisturbed, folder)
    if mounted and not fault.mounted:
        pytest.skip("this user may not mount")
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVE, str(folder.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        checkpoint(folder.checkpoints, bytes(1000))
        fault.plant(Target(rank=0, host="", process=saver.pid, folder=folder, driver=saver.pid))
        saver.stdin.write("\n")
        saver.stdin.flush()
        assert saver.stdout.readline().strip() == ("28" if mounted else "27")
        (folder.checkpoints / "share").unlink()
        append_event(folder.events, now_s=time.time(), kind="checkpoint_failed", step=20)
        fault.await_room(30.0)
        saver.stdin.write("\n")
        saver.stdin.flush()
        assert saver.stdout.readline().strip() == "saved"
        assert resource.prlimit(saver.pid, resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    finally:
        saver.kill()
        saver.communicate()
        fault.remove()
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["share", "step-00000010"]
    assert "tmpfs " + str(folder.checkpoints) not in Path("/proc/mounts").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_worker_of_another_user_is_told():
    fault, mine = FillDisk(), os.getpid()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.setgid(65534)
        os.setuid(65534)
        try:
            fault._limit(mine, 1000)
        except ResourceError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as told:
        assert f"nor limit the files of worker {mine}" in told.read().decode()


def test_what_a_failed_save_must_not_do_is_found(tmp_path):
    with pytest.raises(InfrastructureError, match="has no checkpoint yet"):
        largest_file_bytes(tmp_path)
    assert "no checkpoint to go back to" in harm_in(tmp_path)
    place = checkpoint(tmp_path, bytes(100))
    assert harm_in(tmp_path) == ""
    (tmp_path / "step-00000020.partial").mkdir()
    assert "left step-00000020.partial" in harm_in(tmp_path)
    (tmp_path / "step-00000020.partial").rmdir()
    (place / "rank-0.safetensors").write_bytes(bytes(99))
    assert "changed" in harm_in(tmp_path)
