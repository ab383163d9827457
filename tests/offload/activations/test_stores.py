import threading

import pytest
import torch

from offload.activations.disk_store import DiskStore
from offload.activations.stores import HostStore
from offload.disk.files import DiskFailure
from offload.disk.tier import DiskTier
from tests.disks import files_up_to

CPU = torch.device("cpu")
SIZES = [1, 4095, 4096, 4097, 70001]


def stores(folder):
    yield HostStore(1 << 20, pin=False)
    tier = DiskTier([folder], capacity_bytes=1 << 20)
    yield DiskStore(tier, buffers=2, piece_bytes=8192, closes_tier=True)


def test_what_was_put_is_fetched(tmp_path):
    for store in stores(tmp_path):
        sources = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in SIZES]
        places = [store.allocate(size) for size in SIZES]
        pending = [store.put(p, s) for p, s in zip(places, sources, strict=True)]
        for transfer in pending:
            transfer.wait()
            assert transfer.done
        for place, source in zip(places, sources, strict=True):
            for target in (store.empty(source.numel(), CPU), torch.empty_like(source)):
                store.fetch(place, target).wait()
                assert torch.equal(target[: source.numel()], source)
        store.close()


def test_a_full_tier_says_so_and_released_room_is_used_again(tmp_path):
    for store in stores(tmp_path):
        room = store.free_bytes
        place = store.allocate(room)
        with pytest.raises(RuntimeError, match=r"no room for 8192 bytes in .*: 0 are free; give"):
            store.allocate(5000)
        store.release(place)
        assert store.free_bytes == room
        assert store.allocate(room) == place
        store.close()


def test_a_failed_write_names_the_folder(tmp_path):
    store = DiskStore(DiskTier([tmp_path], capacity_bytes=1 << 20), closes_tier=True)
    source = torch.ones(10000, dtype=torch.uint8)
    with files_up_to(0):
        transfer = store.put(store.allocate(10000), source)
        with pytest.raises(DiskFailure, match=f"cannot write .* under {tmp_path}"):
            transfer.wait()
    store.put(store.allocate(10000), source).wait()
    store.close()


def test_a_slow_disk_is_an_error_and_no_hang(tmp_path):
    gate = threading.Event()

    class Slow(DiskTier):
        def write(self, record, buffers):
            gate.wait()
            return super().write(record, buffers)

    store = DiskStore(Slow([tmp_path], capacity_bytes=1 << 20), timeout_s=0.05, closes_tier=True)
    transfer = store.put(store.allocate(5000), torch.ones(5000, dtype=torch.uint8))
    with pytest.raises(DiskFailure, match=r"no answer to a write of 5000 bytes.*disk_timeout_s"):
        transfer.wait()
    gate.set()
    store.close()


def test_impossible_sizes_are_refused(tmp_path):
    tier = DiskTier([tmp_path], capacity_bytes=1 << 20)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        DiskStore(tier, buffers=0)
    tier.close()
