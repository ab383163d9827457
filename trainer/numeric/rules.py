"""What numeric faults can be answered with in which runs. Pure: neither torch nor ray."""

from trainer.checkpoint.config import CheckpointConfig
from trainer.numeric.config import NumericConfig


def problem_of(
    numeric: NumericConfig,
    checkpoint: CheckpointConfig,
    *,
    islands: int,
    compression: str,
    rebalance_interval_steps: int,
) -> str | None:
    """Which rule the recipe breaks, with the nearest that keeps it; None where it keeps all."""
    if islands > 1:
        return _with_islands(numeric, islands)
    if not numeric.rolls_back:
        return None
    key = _rolling_key(numeric)
    if compression != "none":
        return (
            f"numeric.{key}=rollback does not go with comms.replica.method={compression}: what "
            "replicas have not sent yet belongs to steps that would be undone; set "
            f"numeric.{key}=skip, or comms.replica.method=none"
        )
    if rebalance_interval_steps:
        return (
            f"numeric.{key}=rollback does not go with parallel.rebalance_interval_steps="
            f"{rebalance_interval_steps}: experts on loan are in no saved state; set "
            f"numeric.{key}=skip, or parallel.rebalance_interval_steps=0"
        )
    kept_steps = (checkpoint.keep_last - 1) * checkpoint.interval_steps
    if kept_steps >= numeric.rollback_steps:
        return None
    wanted = 1 - (-numeric.rollback_steps // max(checkpoint.interval_steps, 1))
    remedy = f"checkpoint.keep_last={wanted}"
    if not checkpoint.interval_steps:
        remedy = f"checkpoint.interval_steps={numeric.rollback_steps}"
    return (
        f"numeric.{key}=rollback needs a checkpoint that is numeric.rollback_steps="
        f"{numeric.rollback_steps} steps old, but checkpoint.interval_steps="
        f"{checkpoint.interval_steps} with checkpoint.keep_last={checkpoint.keep_last} only "
        f"warrants {kept_steps}; set {remedy}"
    )


def _with_islands(numeric: NumericConfig, islands: int) -> str | None:
    """Islands train on with what they have agreed on, each at its own time."""
    wanted = {
        "on_nan": "skip" if numeric.on_nan == "rollback" else None,
        "on_spike": "ignore" if numeric.on_spike != "ignore" else None,
        "skip_steps": "[]" if numeric.skip_steps else None,
    }
    for key, nearest in wanted.items():
        if nearest is not None:
            value = {"on_nan": numeric.on_nan, "on_spike": numeric.on_spike}.get(
                key, list(numeric.skip_steps)
            )
            return (
                f"numeric.{key}={value} does not go with parallel.island={islands}: islands judge "
                "their steps each for itself, and exchange by the number of the step; set "
                f"numeric.{key}={nearest}, or parallel.island=1"
            )
    return None


def _rolling_key(numeric: NumericConfig) -> str:
    return "on_nan" if numeric.on_nan == "rollback" else "on_spike"


def read_keys(config: NumericConfig) -> NumericConfig:
    """An equal configuration less what has no effect with it, so that such keys stay unread."""
    read = {
        "on_nan": config.on_nan,
        "on_spike": config.on_spike,
        "spike_deviations": config.spike_deviations,
        "skip_steps": config.skip_steps,
    }
    patience = {} if config.on_spike == "ignore" else _patience(config)
    rollbacks = _rollbacks(config) if config.rolls_back else {}
    return NumericConfig(**{**read, **patience, **rollbacks})  # type: ignore[arg-type]


def _patience(config: NumericConfig) -> dict[str, int]:
    return {"spike_patience_steps": config.spike_patience_steps}


def _rollbacks(config: NumericConfig) -> dict[str, int]:
    return {"rollback_steps": config.rollback_steps, "max_rollbacks": config.max_rollbacks}
