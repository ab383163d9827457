"""What `parallel/experts/capacity.py` guarantees."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.experts.capacity import MIN_CAPACITY, within_capacity

FACTOR, TOP_K = 1.25, 2


def members(lengths, padding=0):
    member_ST = torch.zeros(len(lengths), sum(lengths) + padding, dtype=torch.bool)
    start = 0
    for s, length in enumerate(lengths):
        member_ST[s, start : start + length] = True
        start += length
    return member_ST


@st.composite
def routings(draw):
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=3))
    experts, padding = draw(st.integers(TOP_K, 6)), draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    # Some experts are liked much more than others.
    scores = torch.randn(sum(lengths) + padding, experts, generator=generator)
    scores += torch.linspace(0, 3, experts)
    return lengths, padding, experts, scores.topk(TOP_K, dim=1).indices


def taken(lengths, padding, experts, experts_Tk):
    member_ST = members(lengths, padding)
    return within_capacity(experts_Tk, member_ST, num_experts=experts, factor=FACTOR)


@given(routings())
def test_an_expert_takes_what_it_has_room_for_first_choices_first(routing):
    lengths, padding, experts, experts_Tk = routing
    kept_Tk, start = taken(*routing), 0
    for length in lengths:
        capacity = max(math.ceil(length * TOP_K / experts * FACTOR), MIN_CAPACITY)
        wanted, room = torch.zeros(length, TOP_K, dtype=torch.bool), [capacity] * experts
        for choice in range(TOP_K):
            for token in range(length):
                expert = int(experts_Tk[start + token, choice])
                wanted[token, choice] = room[expert] > 0
                room[expert] -= int(room[expert] > 0)
        assert torch.equal(kept_Tk[start : start + length], wanted)
        start += length
    assert not kept_Tk[start:].any(), "padding was taken"
    assert kept_Tk.shape[0] == start + padding


@given(routings())
def test_a_sequence_alone_drops_what_it_drops_among_others(routing):
    lengths, _, experts, experts_Tk = routing
    kept_Tk, start = taken(*routing), 0
    for length in lengths:
        own = slice(start, start + length)
        assert torch.equal(taken([length], 0, experts, experts_Tk[own]), kept_Tk[own])
        start += length
