import pytest

from offload.schedule import (
    Rates,
    balance_share,
    choose_share,
    place_subgroups,
    predict,
    refit,
    spread,
)

# Parameters and bytes per second of a PCIe 5 card beside a fast host.
RATES = Rates(
    host_parameters_per_s=2.2e9,
    device_parameters_per_s=90e9,
    fetch_bytes_per_s=50e9,
    flush_bytes_per_s=50e9,
)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_each_subgroup_has_one_place_and_the_numbers_are_as_asked(count):
    for disk in range(count + 1):
        for device in range(count - disk + 1):
            places = place_subgroups(count, device=device, disk=disk)
            assert len(places) == count
            assert (places.count("device"), places.count("disk")) == (device, disk)
            assert places == place_subgroups(count, device=device, disk=disk)


@pytest.mark.parametrize(("count", "chosen"), [(7, 3), (16, 11), (9, 9), (5, 0), (40, 1)])
def test_chosen_positions_are_even(count, chosen):
    marks = spread(count, chosen)
    assert sum(marks) == chosen
    for width in range(1, count + 1):
        windows = [sum(marks[i : i + width]) for i in range(count - width + 1)]
        assert max(windows) - min(windows) <= 1


def test_more_than_all_is_refused():
    with pytest.raises(ValueError, match="0 to 4 of 4"):
        spread(4, 5)


def test_the_chosen_share_is_the_fastest_of_all():
    sizes = [100_000_000] * 20
    chosen, prediction = choose_share(sizes, RATES)
    times = [predict(sizes, place_subgroups(20, device=g), RATES).total_s for g in range(21)]
    assert prediction.total_s == min(times)
    assert chosen == times.index(min(times))
    assert chosen > 10, "the balance lies beyond the half of a stride of two"


def test_of_equal_shares_the_smaller_is_taken():
    # The disk decides the time, so moving subgroups to the device gains nothing.
    rates = refit(RATES, Rates(host_parameters_per_s=0.0, disk_bytes_per_s=1e8))
    assert choose_share([10_000_000] * 4, rates, disk=3)[0] == 0


def test_without_a_device_nothing_goes_there():
    chosen, prediction = choose_share([1000] * 8, Rates(host_parameters_per_s=1e6))
    assert chosen == 0
    assert prediction.total_s == pytest.approx(8000 / 1e6)


@pytest.mark.parametrize("fetch", [6e9, 25e9, 50e9, 200e9])
def test_many_subgroups_approach_the_balance_point(fetch):
    rates = refit(RATES, Rates(host_parameters_per_s=0.0, fetch_bytes_per_s=fetch), weight=1.0)
    chosen, _ = choose_share([10_000_000] * 200, rates, buffers=3)
    assert chosen / 200 == pytest.approx(balance_share(rates), abs=0.03)


def test_lanes_overlap():
    sizes = [100_000_000] * 12
    prediction = predict(sizes, place_subgroups(12, device=6), RATES)
    lanes = (prediction.host_s, prediction.fetch_s, prediction.flush_s, prediction.device_s)
    assert max(lanes) <= prediction.total_s < 0.8 * sum(lanes)


def test_one_buffer_overlaps_less_than_two():
    places = place_subgroups(8, device=8)
    one, two = (predict([1_000_000] * 8, places, RATES, buffers=b).total_s for b in (1, 2))
    assert one > 1.5 * two


def test_a_disk_bound_update_takes_its_bytes_over_the_rate():
    rates = Rates(host_parameters_per_s=1e9, disk_bytes_per_s=1e9)
    places = place_subgroups(10, disk=10)
    prediction = predict([1_000_000] * 10, places, rates, disk_bytes_per_parameter=16)
    assert prediction.total_s == pytest.approx(0.16, rel=0.01)


def test_work_on_a_lane_without_a_rate_is_refused():
    with pytest.raises(ValueError, match="measure it first"):
        predict([1000], ["disk"], Rates(host_parameters_per_s=1e9))


def test_refitting_keeps_what_was_not_seen_and_converges_to_what_was():
    rates = RATES
    for _ in range(40):
        rates = refit(rates, Rates(host_parameters_per_s=1.1e9))
    assert rates.host_parameters_per_s == pytest.approx(1.1e9, rel=1e-3)
    assert rates.fetch_bytes_per_s == RATES.fetch_bytes_per_s
