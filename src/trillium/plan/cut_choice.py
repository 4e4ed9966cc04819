"""The cut that clients can bear: `framework.cut=auto` and `tiers.LABEL.cut=auto` in a plan.

A deeper cut gives away less and takes work off the server. What it takes of a client, its memory,
compute and messages, is planned; the deepest one that fits the device and keeps the constraints is
proposed. Where the client's blocks are frozen a deeper cut costs accuracy, which no plan knows: there
at most a quarter of the blocks are proposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from trillium.clock.times import RoundTime
from trillium.config.experiment import Tree, experiment, merge
from trillium.errors import UserError
from trillium.frameworks.split.protocol import Split
from trillium.plan.advice import Constraint
from trillium.plan.arms import Arm, plan_arm
from trillium.plan.data import by_tier
from trillium.plan.models import Models, architecture
from trillium.plan.places import Planning

AUTO: Final = "auto"
SHARE: Final = 4  # of frozen blocks, at most one in so many


@dataclass(frozen=True)
class Proposal:
    """A cut, and why it is no deeper.

    Attributes:
        label: of the arm, with that of the tier if it is one's own.
        cut: blocks of the client.
        why: what stands against one block more, or even against this one.
    """

    label: str
    cut: int
    why: str

    def __str__(self) -> str:
        return f"{self.label}: cut {self.cut}; {self.why}"


def with_cuts(
    trees: Mapping[str, Tree], planning: Planning, limits: Sequence[Constraint], models: Models
) -> tuple[dict[str, Tree], list[Proposal]]:
    """Return settings in which each cut is a number, and why these numbers.

    Args:
        trees: settings by label, as `arms_of` returns them.
        limits: what may not be exceeded. Of `round`, the clients of a tier are held to their own work
            and messages; the common cut to all of the round.
    """
    found, proposals = {}, []
    for label, tree in trees.items():
        found[label], own = _Chooser(label, planning, limits, models).choose(tree)
        proposals += own
    return found, proposals


@dataclass(frozen=True)
class _Chooser:
    """Tries cuts of one arm."""

    label: str
    planning: Planning
    limits: Sequence[Constraint]
    models: Models

    def choose(self, tree: Tree) -> tuple[Tree, list[Proposal]]:
        """Return the settings with numbers."""
        framework = tree.get("framework")
        tiers = [t for t, own in (tree.get("tiers") or {}).items() if own.get("cut") == AUTO]
        common = isinstance(framework, Mapping) and framework.get("cut") == AUTO
        if not common and not tiers:
            return tree, []
        for tier in tiers:
            tree = merge(tree, {"tiers": {tier: {"cut": 1}}})
        first = _cut(tree, 1) if common else tree
        try:
            config = experiment(first)
        except UserError:
            return first, []  # its plan says what is wrong with it
        if not isinstance(config.framework, Split):
            return tree, []
        most, why = _bound(config.framework, architecture(config, 0))
        proposals = []
        if common:
            own = self._deepest(self.label, most, why, partial(self._common, tree))
            tree, proposals = _cut(tree, own.cut), [own]
        most = proposals[0].cut if common else config.framework.cut
        why = f"no tier may have more than framework.cut={most}"
        for tier in tiers:
            own = self._deepest(f"{self.label} {tier}", most, why, partial(self._tier, tree, tier))
            tree = _tier_cut(tree, tier, own.cut)
            proposals.append(own)
        return tree, proposals

    def _deepest(self, label: str, most: int, why: str, against: Callable[[int], str]) -> Proposal:
        """Return the deepest cut against which nothing stands; what a cut takes grows with it."""
        reason = against(most)
        if not reason:
            return Proposal(label, most, why)
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            found = against(middle)
            if found:
                high, reason = middle, found
            else:
                low = middle
        if not low:
            return Proposal(label, 1, f"not even that will do: {reason}")
        return Proposal(label, low, f"with {high}: {reason}")

    def _common(self, tree: Tree, cut: int) -> str:
        """Return what stands against a cut for the clients that have it."""
        own = {label for label, tier in (tree.get("tiers") or {}).items() if "cut" in tier}
        arm = plan_arm(self.label, _cut(tree, cut), self.planning, self.models)
        tiers = tuple(tier for tier in arm.tiers if tier.label not in own)
        return self._against(replace(arm, tiers=tiers)) if tiers or arm.refused else ""

    def _tier(self, tree: Tree, tier: str, cut: int) -> str:
        """Return what stands against a cut for the clients of a tier."""
        arm = plan_arm(self.label, _tier_cut(tree, tier, cut), self.planning, self.models)
        if arm.prediction is None or arm.config is None:
            return arm.refused
        time = arm.time
        if time is not None:
            names = by_tier(arm.config, arm.prediction.clients).get(tier, [])
            shares = [time.clients[name] for name in names if name in time.clients]
            seconds = max((share.compute + share.wire for share in shares), default=0.0)
            time = RoundTime(seconds, clients=time.clients)
        own = tuple(found for found in arm.tiers if found.label == tier)
        return self._against(replace(arm, tiers=own, time=time)) if own else ""

    def _against(self, arm: Arm) -> str:
        broken = [arm.misfit] if arm.misfit else [limit.broken_by(arm) for limit in self.limits]
        return "; ".join(text for text in broken if text)


def _bound(framework: Split, hf_config: Any) -> tuple[int, str]:
    """Return the deepest cut that is proposed, and why."""
    num_blocks = int(hf_config.get_text_config().num_hidden_layers)
    last = num_blocks if framework.tail is None else framework.tail
    if framework.train == "server":
        quarter = min(math.ceil(num_blocks / SHARE), last - 1)
        return quarter, f"more than a quarter of {num_blocks} blocks frozen would cost accuracy"
    return last - 1, "one block is left for the server"


def _cut(tree: Tree, cut: int) -> Tree:
    return merge(tree, {"framework": {"cut": cut}})


def _tier_cut(tree: Tree, tier: str, cut: int) -> Tree:
    return merge(tree, {"tiers": {tier: {"cut": cut}}})
