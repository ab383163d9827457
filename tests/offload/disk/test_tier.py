import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import pytest
import torch

from offload.disk.extents import PAGE_BYTES
from offload.disk.files import DiskFailure, ScratchFile
from offload.disk.tier import DiskTier, page_aligned
from tests.disks import files_up_to

STRIPE = 4 * PAGE_BYTES


def tier_in(folder, directories=1, **options):
    folders = [folder / str(number) for number in range(directories)]
    options = {"capacity_bytes": 1 << 20, "stripe_bytes": STRIPE, **options}
    return closing(DiskTier(folders, **options))


@pytest.mark.parametrize("directories", [1, 2, 3])
def test_what_was_written_is_read_back(tmp_path, directories):
    torch.manual_seed(0)
    with tier_in(tmp_path, directories) as tier:
        data = [page_aligned(pages * PAGE_BYTES).random_() for pages in (1, 7, 30)]
        records = [tier.allocate(3 * tensor.nbytes) for tensor in data]
        pending = [
            tier.write(record, [tensor, tensor, tensor])
            for record, tensor in zip(records, data, strict=True)
        ]
        for transfer in pending:
            transfer.wait()
        for record, tensor in zip(records, data, strict=True):
            whole, part = page_aligned(2 * tensor.nbytes), page_aligned(tensor.nbytes)
            tier.read(record, [part, whole]).wait()
            assert torch.equal(part, tensor)
            assert torch.equal(whole, torch.cat([tensor, tensor]))


def test_bytes_are_counted(tmp_path):
    with tier_in(tmp_path, 2) as tier:
        buffer = page_aligned(10 * PAGE_BYTES)
        record = tier.allocate(buffer.nbytes)
        for _ in range(3):
            tier.write(record, [buffer]).wait()
        tier.read(record, [buffer]).wait()
        assert tier.counters.written_bytes == 3 * buffer.nbytes
        assert tier.counters.read_bytes == buffer.nbytes


def test_a_refused_write_is_raised_where_it_is_waited_for(tmp_path):
    with tier_in(tmp_path) as tier:
        buffer = page_aligned(PAGE_BYTES)
        record = tier.allocate(buffer.nbytes)
        with files_up_to(0):
            transfer = tier.write(record, [buffer])
            with pytest.raises(DiskFailure, match=f"cannot write 4096 bytes under {tmp_path}"):
                transfer.wait()
        tier.write(record, [buffer]).wait()


def test_a_slow_disk_is_an_error_and_no_hang(tmp_path):
    class Stuck(ScratchFile):
        release = threading.Event()

        def read(self, views, offset):
            self.release.wait()

    with tier_in(tmp_path, timeout_s=0.05) as tier:
        tier._files[0].close()
        tier._files[0] = Stuck(tmp_path, 1 << 20)
        transfer = tier.read(tier.allocate(PAGE_BYTES), [page_aligned(PAGE_BYTES)])
        assert not transfer.done
        with pytest.raises(DiskFailure, match="no answer to a read of 4096 bytes"):
            transfer.wait()
        Stuck.release.set()


def test_buffers_that_direct_io_cannot_take_are_refused(tmp_path):
    with tier_in(tmp_path) as tier:
        record = tier.allocate(2 * PAGE_BYTES)
        with pytest.raises(ValueError, match="make them with page_aligned"):
            tier.write(record, [page_aligned(2 * PAGE_BYTES)[16 : 16 + PAGE_BYTES]])
        with pytest.raises(ValueError, match="do not fit"):
            tier.write(record, [page_aligned(3 * PAGE_BYTES)])
    with pytest.raises(ValueError, match="at least one directory"):
        DiskTier([], capacity_bytes=1)


def test_a_killed_process_leaves_nothing(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from offload.disk.tier import DiskTier, page_aligned\n"
        "tier = DiskTier([sys.argv[1]], capacity_bytes=1 << 24)\n"
        "tier.write(tier.allocate(1 << 20), [page_aligned(1 << 20)]).wait()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=os.getcwd())
    assert run.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
