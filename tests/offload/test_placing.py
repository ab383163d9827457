import pytest
import torch

from offload.device_lane import DeviceLane
from offload.engine import Lanes
from offload.placing import Placing
from offload.schedule import Rates
from offload.subgroups import cut_subgroups

NO_DEVICE = Lanes(host={}, disk=None, device=None)


def placing_of(count=10, disk_share=0.0):
    subgroups = cut_subgroups([[(0, 1024)] for _ in range(count)], 1024)
    return Placing(subgroups, disk_share=disk_share)


def test_without_a_device_all_is_on_the_host_or_on_disk():
    placing = placing_of(disk_share=0.3)
    placing.start("auto", NO_DEVICE, torch.device("cpu"))
    placing.set_share(1.0)
    assert placing.share == 0.0
    assert placing.latched().count("disk") == 3
    assert placing.latched().count("host") == 7


def test_the_time_is_predicted_once_rates_are_known():
    placing = placing_of(disk_share=1.0)
    placing.start("auto", NO_DEVICE, torch.device("cpu"))
    assert placing.predicted() is None
    placing.observe(Rates(host_parameters_per_s=1e6, disk_bytes_per_s=1e6))
    assert placing.predicted().disk_s == pytest.approx(24 * 10240 / 1e6)


def test_shares_outside_the_unit_interval_are_refused():
    with pytest.raises(ValueError, match=r"disk_share must be between 0 and 1, got 1.5"):
        placing_of(disk_share=1.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_new_share_waits_for_the_next_step():
    device = torch.device("cuda")
    lanes = Lanes(host={}, disk=None, device=DeviceLane(device, largest=1024, buffers=2))
    placing = placing_of()
    placing.start(0.2, lanes, device)
    assert placing.latched().count("device") == 2
    placing.set_share(0.7)
    assert placing.latched().count("device") == 2
    placing.release()
    assert placing.latched().count("device") == 7
    placing.start("auto", lanes, device)
    assert placing.rates.fetch_bytes_per_s > 0.0
