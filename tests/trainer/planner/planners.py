"""What plans are made of, and a planner for tests of what stands before one."""

from parallel.layout import Layout
from trainer.planner.batch import BatchArithmetic
from trainer.planner.costs import AttentionShape, Hardware, ModelCost
from trainer.planner.fixed import FixedPlanner

LENGTHS = [8] * 4
HARDWARE = Hardware(
    peak_flops_per_s=1e9, flops_per_s=5e8, update_parameters_per_s=1e6, link_bytes_per_s=1e8
)
SHAPE = AttentionShape(
    num_heads=2, num_kv_heads=2, head_dim=4, element_bytes=4, num_layers=1, windowed=False
)
COST = ModelCost(
    attention=SHAPE,
    parameters=1000,
    flops_per_token=6e3,
    sharded=False,
    param_bytes=4,
    reshard_after_forward=False,
)


def fixed_planner() -> FixedPlanner:
    """Two ranks that replicate a tiny model."""
    return FixedPlanner(
        layout=Layout(replica=2),
        arithmetic=BatchArithmetic(
            global_batch_tokens=32, seq_len=8, max_tokens_per_device=8, data_ranks=2
        ),
        activation="keep",
        model=COST,
        hardware=HARDWARE,
    )
