import pytest
import torch
from torch import nn

from offload.adam import AdamRule, adam_update
from offload.disk_lane import DiskLane
from offload.engine import Engine, Lanes, Update
from offload.gradients import HostGradients
from offload.states import SubgroupState
from offload.subgroups import cut_subgroups
from offload.weights import Weights

RULE = AdamRule(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
WORK = Update(rules=[RULE], steps=[1.0, 1.0], grad_scale=1.0)
COUNT = 6


def fresh_state():
    return SubgroupState(exp_avg=torch.zeros(1024), exp_avg_sq=torch.zeros(1024), master=None)


class Setting:
    """Six subgroups over two parameters, some on disk, with a gradient on each parameter."""

    def __init__(self, tier, on_disk, *, overlap=True, with_gradient=(True, True)):
        generator = torch.Generator().manual_seed(0)
        self.parameters = [
            nn.Parameter(torch.randn(3 * 1024, generator=generator)) for _ in range(2)
        ]
        self.weights = Weights(self.parameters)
        subgroups = cut_subgroups([[(0, 3072), (1, 3072)]], 1024)
        lane = DiskLane(
            tier,
            [s for s in subgroups if s.index in on_disk],
            with_master=lambda _: False,
            buffers=2,
            overlap=overlap,
        )
        for subgroup in lane.subgroups:
            lane.replace(subgroup, lambda state: None)
        host = {s.index: fresh_state() for s in subgroups if s.index not in on_disk}
        gradients = HostGradients(self.parameters, stream=True)
        self.engine = Engine(
            self.weights, subgroups, Lanes(host=host, disk=lane, device=None), gradients
        )
        self.places = ["disk" if i in on_disk else "host" for i in range(COUNT)]
        for parameter, wanted in zip(self.parameters, with_gradient, strict=True):
            if wanted:
                (parameter * parameter).sum().backward()

    def values(self):
        return [parameter.detach().clone() for parameter in self.parameters]


def expected(values, with_gradient=(True, True)):
    for value, wanted in zip(values, with_gradient, strict=True):
        if wanted:
            state = torch.zeros(2, value.numel())
            adam_update(
                RULE,
                masters=[value],
                grads=[2 * value],
                exp_avgs=[state[0]],
                exp_avg_sqs=[state[1]],
                steps=[1.0],
            )
    return values


def same(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("on_disk", [(), (0, 3), (1, 2, 3, 4), tuple(range(COUNT))])
def test_every_subgroup_is_updated_once_wherever_it_is(tier, overlap, on_disk):
    setting = Setting(tier, on_disk, overlap=overlap)
    wanted = expected(setting.values())
    setting.engine.update(WORK, setting.places)
    assert same(setting.values(), wanted)


def test_subgroups_without_gradient_are_left_alone(tier):
    setting = Setting(tier, (0, 3), with_gradient=(False, True))
    wanted = expected(setting.values(), with_gradient=(False, True))
    setting.engine.update(WORK, setting.places)
    assert same(setting.values(), wanted)


def test_an_update_cut_short_leaves_old_weights_and_a_failed_engine(tier):
    setting = Setting(tier, (0, 2, 4))
    before = setting.values()
    # Rules are looked up per subgroup: with none for it, the update breaks off.
    broken = Update(rules=_Few([RULE] * 4), steps=[1.0, 1.0], grad_scale=1.0)
    with pytest.raises(KeyboardInterrupt):
        setting.engine.update(broken, setting.places)
    assert same(setting.values(), before)
    assert setting.engine.failed


class _Few(list):
    """Hands out its rules one by one; then somebody presses Ctrl-C."""

    def __getitem__(self, _):
        if not self:
            raise KeyboardInterrupt
        return self.pop()
