import pytest
import torch

from offload.rates import host_rate, measure_rates


def test_the_fastest_run_counts():
    ticks = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    assert host_rate(1000, clock=lambda: next(ticks)) == 500.0


def test_without_a_device_only_the_host_is_measured():
    rates = measure_rates(torch.device("cpu"), 100_000)
    assert rates.host_parameters_per_s > 1e6
    assert rates.fetch_bytes_per_s == rates.device_parameters_per_s == 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_a_device_all_lanes_have_a_rate():
    rates = measure_rates(torch.device("cuda"), 1 << 20)
    assert min(rates.fetch_bytes_per_s, rates.flush_bytes_per_s) > 1e8
    assert rates.device_parameters_per_s > 1e6
