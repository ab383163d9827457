import numpy as np
import torch

from tests.trainer.rl.samples import make_samples
from trainer.data.batch import IGNORED
from trainer.rl.batch import StepForm, pack_samples, trained_tokens
from trainer.rl.objectives.stream import GlobalCounts

COUNTS = GlobalCounts(tokens=9, sequences=3)
FORM = StepForm(version=3, counts=COUNTS, padding_token=1, has_reference=True, routing_shape=(2, 3))


def test_labels_are_the_next_tokens_that_were_sampled():
    samples = make_samples(4, routing=(2, 3, 5))
    batch = pack_samples(samples, FORM, multiple=8)
    assert len(batch.tokens_T) % 8 == 0
    start = 0
    for place, sample in enumerate(samples):
        rows = slice(start, start + sample.num_tokens - 1)
        start = rows.stop
        sampled = torch.from_numpy(sample.loss_mask[1:] != 0)
        labels = batch.labels_T[rows]
        assert batch.tokens_T[rows].tolist() == sample.tokens[:-1].tolist()
        assert labels[sampled].tolist() == sample.tokens[1:][sample.loss_mask[1:] != 0].tolist()
        assert (labels[~sampled] == IGNORED).all()
        assert batch.positions_T[rows].tolist() == list(range(sample.num_tokens - 1))
        assert (batch.policy.of("sequence")[rows] == place).all()
        assert (batch.policy.of("advantage")[rows] == np.float32(sample.advantage)).all()
        np.testing.assert_array_equal(
            batch.policy.of("log_probs")[rows].numpy(), sample.log_probs[1:]
        )
        assert batch.policy.of("current")[rows].tolist() == (sample.versions[1:] == 3).tolist()
        assert batch.experts_TLk is not None
        np.testing.assert_array_equal(batch.experts_TLk[rows].numpy(), sample.routing)
    assert (batch.labels_T[start:] == IGNORED).all()
    assert (batch.experts_TLk[start:] == -1).all()
    assert batch.policy.tokens_S.tolist() == [trained_tokens(sample) for sample in samples]
    assert batch.document_ends[-1] == len(batch.tokens_T) == batch.sequence_ends[-1]
    assert batch.num_targets == int((batch.labels_T != IGNORED).sum())


def test_values_stay_with_their_labels_in_shares_of_a_stream():
    whole = pack_samples(make_samples(5), FORM, multiple=4)
    tokens = len(whole.tokens_T)
    stretches = ((2, 7), (tokens - 6, tokens - 1))
    share = whole.share(stretches)
    kept = torch.cat([torch.arange(*stretch) for stretch in stretches])
    assert share.stretches == stretches
    assert torch.equal(share.labels_T, whole.labels_T[kept])
    for name in ("sequence", "current", "advantage", "log_probs", "model_log_probs", "reference"):
        wanted = whole.policy.of(name)[kept]
        torch.testing.assert_close(share.policy.of(name), wanted, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(share.policy.tokens_S, whole.policy.tokens_S)


def test_without_samples_there_is_padding_of_which_nothing_is_trained():
    batch = pack_samples((), FORM, multiple=4).to(torch.device("cpu"))
    assert batch.tokens_T.tolist() == [1] * 4
    assert batch.num_targets == batch.num_tokens == 0
    assert batch.policy.reference_T is not None
    assert len(batch.policy.pairs_P2) == 0
