import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from trainer.data.background import PACKAGE_ROOT, BackgroundTokeniser
from trainer.data.corpus import Corpus
from trainer.data.failure import Failure, found_failure
from trainer.data.order import block_order
from trainer.data.stream import TokenStream
from trainer.errors import DataError, InfrastructureError, ResourceError

DEADLINE_S = 40.0


def alive(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(done):
    end_s = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.fixture
def started():
    """Tokenising processes that are ended with the test."""
    processes = []
    yield processes
    for process in processes:
        process.close()


def test_it_fills_the_store_and_ends(text_source, data_config, tokenizer, started):
    corpus = Corpus.open(data_config(text_source), tokenizer, background=False)
    started.append(BackgroundTokeniser(corpus.assignment))
    corpus.wait_for(range(corpus.num_blocks))
    assert corpus.complete
    wait_for(lambda: not alive(started[0].process_id))
    assert started[0].failure() is None


def test_its_priority_is_the_lowest_once_training_can_begin(
    tmp_path, data_config, tokenizer, started
):
    (tmp_path / "big").mkdir()
    for number in range(40):
        (tmp_path / "big" / f"{number}.txt").write_text("the model trains " * 20_000)
    config = data_config(tmp_path / "big", shuffle_blocks=3)
    corpus = Corpus.open(config, tokenizer, background=False)
    started.append(BackgroundTokeniser(corpus.assignment))
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, started[0].process_id) == priority
    corpus.wait_for(block_order(corpus.num_blocks, seed=0, epoch=0)[:3].tolist())
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, started[0].process_id) == 19)
    assert not corpus.complete


def test_its_failure_is_raised_by_those_who_wait(tmp_path, data_config, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 200 + "bad\n")
    config = data_config(path)
    starter = Corpus.open(config, tokenizer, background=True)
    other = Corpus.open(config, tokenizer, background=False)
    starter.begin(0)
    for corpus in (starter, other):
        with pytest.raises(DataError, match=r"a\.jsonl:201 is not JSON .*data\.on_bad=skip"):
            corpus.wait_for(range(corpus.num_blocks))
    starter.close()


def test_an_earlier_failure_is_forgotten_by_the_next_starter(tmp_path, data_config, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n')
    config = data_config(path)
    with Opened(config, tokenizer) as corpus, pytest.raises(DataError):
        TokenStream(corpus, config, seed=0, sequences_per_step=1).sequences(0)
    path = corpus.assignment.failure_path
    assert found_failure(path) is not None
    with Opened(config, tokenizer):
        assert found_failure(path) is None


def test_runs_of_another_packing_or_length_do_not_see_a_failure(
    text_source, data_config, tokenizer
):
    failed = Corpus.open(data_config(text_source, packing="whole"), tokenizer, background=False)
    Failure.of(DataError("too long")).leave(failed.assignment.failure_path)
    for values in ({}, {"packing": "whole", "seq_len": 4096}):
        with Opened(data_config(text_source, **values), tokenizer) as corpus:
            assert corpus.assignment.store == failed.assignment.store
            corpus.begin(0)
            corpus.wait_for(range(corpus.num_blocks))
    with pytest.raises(DataError, match="too long"):
        failed.wait_for(range(failed.num_blocks))


class Opened:
    """A corpus that may start tokenising, closed at the end."""

    def __init__(self, config, tokenizer):
        self.corpus = Corpus.open(config, tokenizer, background=True)

    def __enter__(self):
        return self.corpus

    def __exit__(self, *_):
        self.corpus.close()


def test_a_killed_process_is_noticed_by_all(tmp_path, data_config, tokenizer):
    (tmp_path / "big.txt").write_text("the model trains " * 2_000_000)
    config = data_config(tmp_path / "big.txt")
    other = Corpus.open(config, tokenizer, background=False)
    with Opened(config, tokenizer) as corpus:
        corpus.begin(0)
        os.kill(corpus.tokenising_process_id, signal.SIGKILL)
        with pytest.raises(InfrastructureError, match=r"was ended by signal 9; .* start again"):
            corpus.wait_for([0])
        with pytest.raises(InfrastructureError, match="was ended by signal 9"):
            other.wait_for([0])


def test_it_ends_with_its_parent(text_source, data_config, tokenizer, tmp_path):
    (tmp_path / "big").mkdir()
    for number in range(80):
        (tmp_path / "big" / f"{number}.txt").write_text("the model trains " * 20_000)
    config = data_config(tmp_path / "big")
    corpus = Corpus.open(config, tokenizer, background=False)
    code = (
        "import sys, time\n"
        "from trainer.data.background import BackgroundTokeniser\n"
        "from trainer.data.tokenising import Assignment\n"
        "process = BackgroundTokeniser(Assignment.decode(sys.stdin.read()))\n"
        "print(process.process_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PACKAGE_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        parent.stdin.write(corpus.assignment.encode())
        parent.stdin.close()
        child = int(parent.stdout.readline())
        corpus.wait_for([int(block_order(corpus.num_blocks, seed=0, epoch=0)[0])])
        parent.kill()
    wait_for(lambda: not alive(child))
    assert not corpus.complete


def test_closing_ends_it(text_source, data_config, tokenizer):
    corpus = Corpus.open(data_config(text_source), tokenizer, background=True)
    corpus.begin(0)
    process_id = corpus.tokenising_process_id
    corpus.close()
    assert not alive(process_id)
    corpus.close()


def test_nothing_is_started_where_nothing_is_left_to_do(
    text_source, data_config, tokenizer, open_filled
):
    config = data_config(text_source)
    assert open_filled(config).complete
    with Opened(config, tokenizer) as corpus:
        corpus.begin(0)
        assert corpus.tokenising_process_id is None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_it_as_a_matter_of_resources(tmp_path, data_config, tokenizer):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        source = tmp_path / "texts"
        source.mkdir()
        for number in range(30):
            (source / f"{number}.txt").write_text("the model trains " * 2000)
        config = data_config(source, cache_dir=str(disk))
        with Opened(config, tokenizer) as corpus:
            corpus.begin(0)
            with pytest.raises(ResourceError, match=r"is full; free some space"):
                corpus.wait_for(range(corpus.num_blocks))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
