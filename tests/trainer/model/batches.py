"""Batches of pseudo-random tokens in a wanted packing, for tests of the model."""

import torch

from trainer.data.batch import IGNORED, Batch

Sequence = list[int]
"""Lengths of a packed sequence's documents; padding is a negative length."""


def make_batch(sequences: list[Sequence], vocab_size: int, *, seed: int = 0) -> Batch:
    """Documents of the given lengths; the last token of each has no target."""
    tokens, labels, positions = [], [], []
    document_ends, sequence_ends, sequence_tokens, sequence_targets = [], [], [], []
    generator = torch.Generator().manual_seed(seed)
    for documents in sequences:
        for length in documents:
            size = abs(length)
            ids = torch.randint(0, vocab_size, (size,), generator=generator)
            label = torch.cat((ids[1:], torch.tensor([IGNORED])))
            tokens.append(ids)
            labels.append(label if length > 0 else torch.full_like(label, IGNORED))
            positions.append(torch.arange(size))
            document_ends.append(size + (document_ends[-1] if document_ends else 0))
        sequence_ends.append(document_ends[-1])
        real = [length for length in documents if length > 0]
        sequence_tokens.append(sum(real))
        sequence_targets.append(sum(real) - len(real))
    return Batch(
        tokens_T=torch.cat(tokens),
        labels_T=torch.cat(labels),
        positions_T=torch.cat(positions),
        document_ends=tuple(document_ends),
        sequence_ends=tuple(sequence_ends),
        sequence_tokens=tuple(sequence_tokens),
        sequence_targets=tuple(sequence_targets),
    )


def sequence_of(batch: Batch, index: int) -> Batch:
    """One packed sequence of a batch, alone."""
    start = batch.sequence_ends[index - 1] if index else 0
    end = batch.sequence_ends[index]
    return Batch(
        tokens_T=batch.tokens_T[start:end],
        labels_T=batch.labels_T[start:end],
        positions_T=batch.positions_T[start:end],
        document_ends=tuple(e - start for e in batch.document_ends if start < e <= end),
        sequence_ends=(end - start,),
        sequence_tokens=(batch.sequence_tokens[index],),
        sequence_targets=(batch.sequence_targets[index],),
    )
