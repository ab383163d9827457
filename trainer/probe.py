"""The loss on a fixed batch, stored with a checkpoint so that a resume can prove itself."""

import torch

from comms.config import RankEnvironment
from comms.groups import device_of
from parallel.shard import fsdp_modules
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder

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
def probe_loss(model: Decoder, environment: RankEnvironment) -> float:
    """Mean loss of the probe batch. All ranks call it, and all get the same number."""
    batch = probe_batch(model.architecture.vocab_size).to(device_of(environment))
    loss = float(model(batch).loss_sum) / batch.num_targets
    for module in fsdp_modules(model):
        # No backward follows that would free what was gathered.
        module.reshard()
    return loss
