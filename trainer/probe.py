"""The loss on a fixed batch, stored with a checkpoint so that a resume can prove itself."""

import torch
import torch.distributed as dist

from comms.config import RankEnvironment
from comms.groups import device_of
from trainer.assembly import Assembly
from trainer.data.batch import Batch

_PROBE_TOKENS = 64


def probe_batch(vocab_size: int) -> Batch:
    """Two documents of pseudo-random tokens, the same everywhere and always."""
    index = torch.arange(_PROBE_TOKENS + 1, dtype=torch.int64)
    # A fixed linear congruence: it visits the vocabulary widely and needs no generator.
    tokens = (index * 1_103_515_245 + 12_345) % 2_147_483_648 % vocab_size
    half = _PROBE_TOKENS // 2
    return Batch(
        tokens_T=tokens[:-1],
        labels_T=tokens[1:],
        positions_T=index[:-1] % half,
        document_ends=(half, _PROBE_TOKENS),
        sequence_ends=(_PROBE_TOKENS,),
        sequence_tokens=(_PROBE_TOKENS,),
        sequence_targets=(_PROBE_TOKENS,),
    )


@torch.no_grad()
def probe_loss(assembly: Assembly, environment: RankEnvironment) -> float:
    """Mean loss of the probe batch. All ranks of an island call it, and get the same number."""
    batch = probe_batch(assembly.architecture.vocab_size).to(device_of(environment))
    loss = assembly.rounds.evaluate(batch).loss_sum
    if assembly.layout.pp > 1:
        # Only the last stage has a loss; on the others it is zero.
        loss = loss.cpu()
        dist.all_reduce(loss, op=dist.ReduceOp.MAX, group=assembly.group)
    for module in assembly.weights.fsdp_modules():
        # No backward follows that would free what was gathered.
        module.reshard()
    return float(loss) / batch.num_targets
