from offload.memory_plan.greedy import place_greedily
from offload.memory_plan.requests import Request, find_overlap, peak_bytes


def test_room_is_used_again_and_the_same_arguments_give_the_same_placement():
    requests = [Request(name=str(i), size_bytes=100, begin=i, end=i + 2) for i in range(20)]
    placed = place_greedily(requests)
    assert find_overlap(requests, placed) is None
    assert peak_bytes(requests, placed) == 200
    assert placed == place_greedily(list(requests))
