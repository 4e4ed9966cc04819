"""Where the balance tips: up to which size one setting moves fewer bytes than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trillium.config.experiment import Tree, experiment, merge
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.split.protocol import Split
from trillium.plan.arms import Arm
from trillium.plan.data import assumed_texts
from trillium.plan.grow import FEW
from trillium.plan.places import Planning
from trillium.plan.predict import bytes_of_a_round

SMALL = 256  # two sizes so far apart tell how fast bytes grow
PUBLIC = "the public set has no more than about {} texts", "however small the public set is"
RANK = "its rank is not above about {}", "however small its rank is"
EXAMPLES = "a client has no more than about {} examples", "however few examples a client has"


def tips(arms: Sequence[Arm], trees: Mapping[str, Tree], planning: Planning) -> list[str]:
    """Return in words up to which size one setting moves fewer bytes in a round than another."""
    # Of data that were read the sizes are what they are.
    planned = [arm for arm in arms if arm.prediction is not None and arm.prediction.texts.assumed]
    found, slopes = [], dict[tuple[str, str], float]()
    for arm in planned:
        for other in planned:
            about = _about(arm, other)
            if about is None:
                continue
            key, words, start = about
            if (arm.label, key) not in slopes:
                slopes[arm.label, key] = _slope(arm, trees[arm.label], planning, key, start)
            room = _round_bytes(other) - _round_bytes(arm)
            most = break_even(slopes[arm.label, key], room, start)
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


def _slope(arm: Arm, tree: Tree, planning: Planning, key: str, start: int) -> float:
    """Return how many bytes a round gains with the value of one setting.

    What further blocks add does not depend on the data, nor what further examples add on the rank.

    Args:
        start: the value that the arm has.
    """
    assert arm.prediction is not None
    like, shallow = arm.prediction, key != "adapter.r"

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

    near = max(min(start, SMALL), 1)
    return (few(near + SMALL) - few(near)) / SMALL


def _round_bytes(arm: Arm) -> float:
    return max(tier.round.up.bytes + tier.round.down.bytes for tier in arm.tiers)


def break_even(slope: float, room: float, start: int) -> int | None:
    """Return up to which whole number, to three digits, bytes stay below those of another setting.

    Args:
        slope: so many bytes come with each; they grow evenly, but for headers and full batches.
        room: so many more has the other setting.
        start: the number now.

    Returns:
        The number, 0 if there is none, or `None` where the bytes do not grow.
    """
    if slope <= 0:
        return None
    found = max(int(start + room / slope), 0)
    unit: int = 10 ** max(len(str(found)) - 3, 0)
    return found // unit * unit
