"""Which settings of several sections go together. Pure: neither torch nor ray.

Each function gives what is wrong, with the nearest that is right; None where nothing is.
"""

from comms.compression.config import WITHOUT_MOMENTUM


def activation_problem(wanted: str, *, recompute: bool, compiled: bool) -> str | None:
    """`offload.activations` beside `train.recompute` and `train.compile`."""
    if recompute and wanted not in ("auto", "recompute"):
        return (
            f"train.recompute=true runs whole blocks again, but offload.activations={wanted} "
            "says otherwise; set train.recompute to false, or offload.activations to recompute"
        )
    if compiled and wanted in ("selective", "swap"):
        return (
            f"offload.activations={wanted} takes blocks apart, which train.compile=true makes "
            "one graph of; set train.compile to false, or offload.activations to recompute"
        )
    return None


def optimizer_problem(name: str, momentum: float, *, placement: str, method: str) -> str | None:
    """`optim` beside `offload.optimizer` and `comms.replica.method`."""
    if name == "sgd" and placement not in ("auto", "device"):
        return (
            f"offload.optimizer={placement} moves AdamW's states, but optim.name=sgd; set "
            "offload.optimizer to device, or optim.name to adamw"
        )
    if method != "dgc" or (name == "sgd" and momentum):
        return None
    found = name if name != "sgd" else f"sgd with optim.momentum={momentum}"
    others = [other for other in WITHOUT_MOMENTUM if other != "none"]
    return (
        "comms.replica.method=dgc corrects the momentum of SGD and does not fit optim.name="
        f"{found}; set optim.name=sgd with optim.momentum=0.9, or comms.replica.method to one "
        f"of {', '.join(others)}"
    )
