"""How many ranks each role should have, from measured times. Pure.

A role with n ranks that is busy for b seconds of each step has n b rank-seconds of work, which s
ranks do in n b / s. A step of an asynchronous run takes as long as its slowest role, which is
least where all take equally long: shares in proportion to the work (LlamaRL's sizing, arXiv
2505.24034: theta = m_t eta_t / (m_t eta_t + m_g eta_g)). Layouts allow some sizes only, so the
choice is made among those, exactly.

Guarantees, each asserted in tests/trainer/rl/test_sizing.py:
- no choice among the allowed sizes has a shorter step by this rule;
- where every size is allowed, the shares differ from the work's by less than a rank per role;
- a change is advised only where it gains what was asked, and the sentence says from what to what.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, kw_only=True)
class RoleTime:
    """What was measured of one role."""

    ranks: int
    busy_s: float
    """Of a step, without waiting for the other roles."""

    sizes: Sequence[int]
    """Numbers of ranks that its layout allows."""

    @property
    def work(self) -> float:
        """Rank-seconds per step."""
        return self.ranks * self.busy_s


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """The best split, beside the present one."""

    ranks: Mapping[str, int]
    """By role. Ranks that no role can use are left out."""

    step_s: float
    """Predicted."""

    present_s: float
    advised: bool
    """Whether the change gains enough."""

    sentence: str


def size_roles(roles: Mapping[str, RoleTime], *, ranks: int, least_gain: float = 0.05) -> Sizing:
    """The split of `ranks` over the roles with the shortest step.

    `least_gain` is the share of the step's time that a change must save. Raises ValueError for
    times that are not positive and finite, and where the smallest sizes do not fit.
    """
    _check(roles, ranks)
    steps_s = sorted({role.work / size for role in roles.values() for size in role.sizes})
    for step_s in steps_s:
        split = {name: _least(role, step_s) for name, role in roles.items()}
        if sum(split.values()) <= ranks:
            break
    spread = _spread(roles, {name: int(size) for name, size in split.items()}, ranks)
    present_s = max(role.busy_s for role in roles.values())
    gain = 1.0 - step_s / present_s
    now = {name: role.ranks for name, role in roles.items()}
    advised = gain >= least_gain and spread != now
    return Sizing(
        ranks=spread if advised else now,
        step_s=step_s if advised else present_s,
        present_s=present_s,
        advised=advised,
        sentence=_sentence(roles, spread if advised else now, step_s, present_s, advised),
    )


def _least(role: RoleTime, step_s: float) -> float:
    """The fewest ranks that do the role's work in that time."""
    return min((size for size in role.sizes if role.work / size <= step_s), default=inf)


def _spread(roles: Mapping[str, RoleTime], split: dict[str, int], ranks: int) -> dict[str, int]:
    """Ranks that are left go to the role that then has least slack."""
    while True:
        left = ranks - sum(split.values())
        larger = {
            name: min(size for size in role.sizes if size > split[name])
            for name, role in roles.items()
            if any(split[name] < size <= split[name] + left for size in role.sizes)
        }
        if not larger:
            return split
        name = max(larger, key=lambda name: (roles[name].work / split[name], name))
        split[name] = larger[name]


def _sentence(
    roles: Mapping[str, RoleTime],
    chosen: Mapping[str, int],
    step_s: float,
    present_s: float,
    advised: bool,
) -> str:
    times = " and ".join(f"{name} {role.busy_s:.3g} s" for name, role in roles.items())
    now = ", ".join(f"{name} {role.ranks}" for name, role in roles.items())
    if not advised:
        return f"the ranks are well split ({now}): in a step {times} are busy"
    to = ", ".join(f"{name} {size}" for name, size in chosen.items())
    return (
        f"in a step {times} are busy with {now} ranks; with {to} a step should take {step_s:.3g} s "
        f"instead of {present_s:.3g} s"
    )


def _check(roles: Mapping[str, RoleTime], ranks: int) -> None:
    for name, role in roles.items():
        if not 0.0 < role.busy_s < inf or role.ranks < 1:
            raise ValueError(
                f"{name}: busy_s={role.busy_s} on {role.ranks} ranks must be positive and finite; "
                "measure a step first"
            )
        if min(role.sizes, default=0) < 1:
            raise ValueError(f"{name}: sizes={list(role.sizes)} must name sizes of at least 1")
    least = sum(min(role.sizes) for role in roles.values())
    if not roles or least > ranks:
        raise ValueError(
            f"{ranks} ranks do not hold the roles {', '.join(roles) or 'none'}, whose smallest "
            f"sizes add up to {least}; give more ranks or allow smaller sizes"
        )
