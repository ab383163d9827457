import torch

from offload.adam import AdamRule, adam_update

RULE = AdamRule(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1024, generator=generator) for _ in range(4)]


def update(tensors, cut, **options):
    master, grad, exp_avg, exp_avg_sq = ([t[:cut], t[cut:]] for t in tensors)
    adam_update(
        RULE, masters=master, grads=grad, exp_avgs=exp_avg, exp_avg_sqs=exp_avg_sq, **options
    )
    return tensors


def test_cuts_at_cache_lines_do_not_show():
    whole, cut = (update(state(), at, steps=[3.0, 3.0]) for at in (1024, 16 * 7))
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_a_power_of_two_as_scale_is_exact():
    halved = state()
    halved[1].mul_(0.5)
    expected = update(halved, 512, steps=[1.0, 1.0])
    found = update(state(), 512, steps=[1.0, 1.0], grad_scale=0.5)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_each_segment_has_its_own_count():
    together = update(state(), 512, steps=[1.0, 9.0])
    first, second = (update(state(), 512, steps=[s, s]) for s in (1.0, 9.0))
    assert torch.equal(together[0][:512], first[0][:512])
    assert torch.equal(together[0][512:], second[0][512:])
    assert not torch.equal(first[0], second[0])


def test_nothing_to_update_is_no_error():
    adam_update(RULE, masters=[], grads=[], exp_avgs=[], exp_avg_sqs=[], steps=[])
    assert RULE.lr == 1e-2
