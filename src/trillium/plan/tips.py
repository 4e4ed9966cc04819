"""Where the balance tips: up to which size one setting moves fewer bytes than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from trillium.config.experiment import Tree, experiment, merge
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.split.protocol import Split
from trillium.plan.arms import Arm
from trillium.plan.data import assumed_texts
from trillium.plan.grow import FEW
from trillium.plan.places import Planning
from trillium.plan.predict import bytes_of_a_round

SMALL = 256  # where a break-even point is looked for first
PUBLIC = "the public set has at most {} texts", "however small the public set is"
RANK = "its rank is at most {}", "however small its rank is"
EXAMPLES = "a client has at most {} examples", "however few examples a client has"
EXACT = 10_000  # up to which it is found exactly; above, to three digits


def tips(arms: Sequence[Arm], trees: Mapping[str, Tree], planning: Planning) -> list[str]:
    """Return in words up to which size one setting moves fewer bytes in a round than another."""
    # Of data that were read the sizes are what they are.
    planned = [arm for arm in arms if arm.prediction is not None and arm.prediction.texts.assumed]
    found, costs = [], dict[tuple[str, str], Callable[[int], float]]()
    for arm in planned:
        for other in planned:
            about = _about(arm, other)
            if about is None:
                continue
            key, words, start = about
            made = _cost(arm, trees[arm.label], planning, key, start)
            cost = costs.setdefault((arm.label, key), made)
            exact = 0 if key == "adapter.r" else EXACT
            most = break_even(cost, _round_bytes(other), start, exact)
            if most is not None:
                upto, anyway = words
                found.append(
                    f"{arm.label} moves fewer bytes in a round than {other.label} as long as "
                    f"{upto.format(f'{most:,}')}"
                    if most
                    else f"{arm.label} moves more bytes in a round than {other.label}, {anyway}"
                )
    return found


def _about(arm: Arm, other: Arm) -> tuple[str, tuple[str, str], int] | None:
    """Return which setting of an arm decides whether it moves fewer bytes than another one.

    With it come the words for "up to so much" and for "however little", and the arm's own value.
    """
    assert arm.config is not None
    assert other.config is not None
    mine, theirs = arm.config.framework, other.config.framework
    if isinstance(mine, KD) and isinstance(theirs, FedLLM):
        whole = mine.public_per_round is None and mine.cache_rounds == 1
        size = arm.config.public_size
        return ("data.public_size", PUBLIC, size) if whole else None
    adapter = arm.config.adapter
    is_free = adapter.name == "lora" and adapter.goes_on_from is None
    if isinstance(mine, FedLLM) and isinstance(theirs, KD) and is_free:
        return "adapter.r", RANK, int(adapter.r)  # type: ignore[attr-defined]
    if isinstance(mine, Split) and isinstance(theirs, FedLLM):
        count = len(next(iter(arm.prediction.texts.clients.values()))) if arm.prediction else 1
        return "plan.data.examples", EXAMPLES, count
    return None


def _cost(arm: Arm, tree: Tree, planning: Planning, key: str, start: int) -> Callable[[int], float]:
    """Return what gives the bytes of a round by the value of one setting.

    Args:
        start: the value that the arm has.
    """
    assert arm.prediction is not None
    like, shallow = arm.prediction, key != "adapter.r"

    @cache
    def few(value: int) -> float:
        assumed, changed = planning.data, tree
        if key == "plan.data.examples":
            assumed = assumed.model_copy(update={"examples": value})
        else:
            section, name = key.split(".")
            changed = merge(tree, {section: {name: value}})
        config = experiment(changed)
        if key == "adapter.r":
            least = min(assumed.examples, FEW * config.training.batch_size)
            assumed = assumed.model_copy(update={"examples": least})
        return bytes_of_a_round(config, assumed_texts(config, assumed), like, shallow=shallow)

    # What further blocks add does not depend on the data, nor what further examples add on the rank.
    return lambda value: few(value) + _round_bytes(arm) - few(start)


def _round_bytes(arm: Arm) -> float:
    return max(tier.round.up.bytes + tier.round.down.bytes for tier in arm.tiers)


def break_even(
    cost: Callable[[int], float], most: float, start: int, exact: int = EXACT
) -> int | None:
    """Return the largest whole number whose cost is below `most`, if large to three digits.

    Args:
        cost: grows evenly, or nearly so, with its argument, which is at least 1.
        most: to stay below.
        start: where to look first.
        exact: up to which number it is found exactly.

    Returns:
        The number, 0 if there is none, or `None` where the cost does not grow.
    """
    near = max(min(start, SMALL), 1)
    at_near = cost(near)
    slope = (cost(near + SMALL) - at_near) / SMALL
    if slope <= 0:
        return None
    guess = max(int(near + (most - at_near) / slope), 0)
    if guess > exact:
        unit: int = 10 ** max(len(str(guess)) - 3, 0)
        return guess // unit * unit
    # Headers grow by steps of eight bytes, batches by steps of their size.
    low, step = guess, 1
    while low > 0 and cost(low) >= most:
        low, step = max(low - step, 0), 2 * step
    high, step = low + 1, 1
    while cost(high) < most:
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < most else (low, middle)
    return low
