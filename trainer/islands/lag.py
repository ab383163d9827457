"""Pure: how far islands may be apart."""

LAG_STEPS = 2
"""News of a step is heard so many steps later: one would make every island wait for the slowest of
each step."""

MOST_APART_STEPS = LAG_STEPS + 1
"""Between the newest snapshots of two islands: one step more than between the islands."""

REMEMBERED_STEPS = LAG_STEPS + MOST_APART_STEPS + 1
"""Of an island's own news: enough for those who are that far behind."""
