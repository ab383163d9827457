"""Plans carry the place of the optimizer's states."""

from dataclasses import replace

from parallel.layout import Layout
from trainer.planner.batch import BatchArithmetic
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.costs import Hardware, ModelCost
from trainer.planner.fixed import FixedPlanner
from trainer.planner.placed import PlacedPlanner
from trainer.planner.plan import Terms
