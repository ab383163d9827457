"""Faults planted on purpose in a run of one's own, and what came of them."""
