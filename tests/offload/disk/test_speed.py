from offload.disk.speed import choose_depth, measure_speed


def test_the_smallest_depth_that_is_nearly_the_fastest():
    assert choose_depth({1: 1.0, 2: 1.9, 4: 2.0, 8: 2.01}) == 4
    assert choose_depth({1: 2.0, 2: 2.01, 4: 2.0}) == 1


def test_rates_are_measured_on_the_disk(tmp_path):
    ticks = iter(range(100))
    speed = measure_speed(
        [tmp_path], num_bytes=1 << 20, depths=[1, 2], clock=lambda: float(next(ticks))
    )
    assert speed.depth == 1
    assert speed.write_bytes_per_s == speed.read_bytes_per_s == 1 << 20
    assert speed.mixed_bytes_per_s == 2 << 20
    assert list(tmp_path.iterdir()) == []
