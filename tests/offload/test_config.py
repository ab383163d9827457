import pytest

from offload.config import OffloadConfig


def test_the_default_needs_nothing():
    assert OffloadConfig().disks == ()


def test_a_single_disk_needs_no_list():
    assert OffloadConfig(disk="/nvme0").disks == ("/nvme0",)
    assert OffloadConfig(disk=("/nvme0", "/nvme1")).disks == ("/nvme0", "/nvme1")
    assert OffloadConfig(disk="").disks == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"share": 1.5}, "offload.share must be between 0 and 1, got 1.5"),
        ({"disk_share": -0.1}, "offload.disk_share"),
        ({"optimizer": "disk"}, "names no directory"),
        ({"disk_depth": 0}, "positive or auto, got 0"),
        ({"disk_timeout_s": 0.0}, "disk_timeout_s must be positive"),
        ({"subgroup_parameters": 1000}, "at least 1024"),
        ({"buffers": 1}, "at least 2"),
        ({"host_memory_fraction": 2.0}, "host_memory_fraction"),
        ({"activation_share": 1.5}, "offload.activation_share must be between 0 and 1"),
        ({"activation_share": 0.5, "activations": "keep"}, "set it to swap or auto"),
        ({"activation_share": 0.5, "activations": "selective"}, "set it to swap or auto"),
        ({"optimizer": "disk", "disk": ""}, "names no directory"),
        ({"activation_tier": "disk"}, "offload.activation_tier is disk, but offload.disk names no"),
        ({"activation_bytes": 0}, "activation_bytes must be positive or auto"),
        ({"activation_min_bytes": -1}, "activation_min_bytes must not be negative"),
        ({"activation_kept_blocks": -1}, "activation_kept_blocks must not be negative"),
    ],
)
def test_impossible_values_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        OffloadConfig(**keys)
