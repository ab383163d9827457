"""What ranks tell of themselves, read from outside their processes. Needs neither torch nor ray.

A driver looks at ranks through this module; the formats belong to `comms/telemetry/`.
"""

from comms.telemetry.reading import BoardError, read_board
from comms.telemetry.records import CollectiveRecord, RankReading

__all__ = ["BoardError", "CollectiveRecord", "RankReading", "read_board"]
