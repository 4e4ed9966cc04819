"""What holds where nothing is written, by task: one table, below all that is written.

What is right for a small classifier is not for a language model: its learning rate is too high, an
adapter in two layers of a block learns too little, and soft labels over a vocabulary weigh gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trillium.federation.setting import Setting
from trillium.frameworks.effects import DIRECTIONS
from trillium.frameworks.kd.settings import KDSettings
from trillium.wire.codecs.log_probabilities import LogProbabilities
from trillium.wire.codecs.rows import FullRows
from trillium.wire.codecs.top_classes import TopClasses

Tree = dict[str, Any]
FAR: Final = 4.0  # times the default learning rate of a language model; above it, a plan warns
MANY: Final = 1024  # classes; where there are more, a plan warns of telling all of them


@dataclass(frozen=True)
class Default:
    """A value that a setting has under some others.

    Attributes:
        path: of the setting.
        under: what these others must be, by path; `None` stands for what they are by default.
        basis: why this value.
    """

    path: str
    value: Any
    under: Mapping[str, tuple[str | None, ...]]
    basis: str


_CAUSAL: Final = {"task": ("causal_lm",)}
_LANGUAGE: Final = {"task": ("causal_lm", "preference")}
_LORA: Final = {**_LANGUAGE, "adapter": ("lora",)}
_TOP: Final = [{"name": "top_classes", "k": 16}]
BY_TASK: Final[tuple[Default, ...]] = (
    Default(
        "training.optimizer.lr",
        2e-4,
        {**_LORA, **_CAUSAL, "training.optimizer": ("adamw",)},
        "LoRA on GPT-2 medium (Hu et al., 2021, arXiv 2106.09685) and on models up to 13B "
        "(QLoRA, arXiv 2305.14314)",
    ),
    Default(
        "training.optimizer.lr",
        2e-5,
        {**_CAUSAL, "adapter": ("full",), "training.optimizer": ("adamw",)},
        "a tenth of LoRA's; Llama 2's fine-tuning (arXiv 2307.09288) and Alpaca's",
    ),
    Default(
        "training.optimizer.lr",
        5e-6,
        {**_LORA, "task": ("preference",), "training.optimizer": ("adamw",)},
        "DPO with LoRA in TRL's trl/scripts/dpo.py",
    ),
    Default(
        "adapter.target_modules",
        "all-linear",
        _LORA,
        "adapters in all linear layers are needed to match full fine-tuning (QLoRA)",
    ),
    Default(
        "evaluation.batch_tokens",
        4096,
        _LANGUAGE,
        "blocks are wide: so takes less than a training step of 16 texts of 128 tokens with all its "
        "activations",
    ),
    Default(
        "data.test_fraction",
        0.0,
        {"evaluation.where": ("clients",)},
        "the server measures nothing, so no row need be taken from the clients for it",
    ),
    Default(
        "wire.up",
        _TOP,
        {**_LANGUAGE, "framework": ("kd",)},
        "49 bytes for a token instead of two for each word of the vocabulary; the mass of the others "
        "is told",
    ),
    Default(
        "wire.down",
        _TOP,
        {**_LANGUAGE, "framework": ("kd",), "framework.direction": ("both", "client", None)},
        "the same",
    ),
    Default(
        "framework.average",
        "logits",
        {"task": ("regression",), "framework": ("kd",)},
        "the mean of logits is that of the numbers which they say",
    ),
    Default(
        "framework.temperature",
        1.0,
        {**_LANGUAGE, "framework": ("kd",)},
        "of the words that are not named only the mass is known: spread evenly over tens of "
        "thousands and then softened, it would be most of the teacher",
    ),
)


def defaults_of(plain: Tree, tree: Mapping[str, Any], merge: Any) -> Tree:
    """Return what holds in a run where its tree says nothing.

    Args:
        plain: what holds whatever the task is.
        tree: what is written.
        merge: lays one tree over another.
    """
    whole, found = merge(plain, tree), plain
    for default in BY_TASK:
        if all(_name_at(whole, path) in names for path, names in default.under.items()):
            above, _, key = default.path.rpartition(".")
            name = _name_at(whole, above)
            own = {key: default.value} if name is None else {"name": name, key: default.value}
            for key in reversed(above.split(".")):
                own = {key: own}
            found = merge(found, own)
    return found


def value_at(tree: Any, path: str) -> Any:
    """Return what stands at a path of a tree; `None` where nothing does."""
    for key in path.split("."):
        if isinstance(tree, list | tuple) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, Mapping):
            tree = tree.get(key)
        else:
            return None
    return tree


def _name_at(tree: Any, path: str) -> Any:
    """Return what stands there, or its name if it is a component."""
    found = value_at(tree, path)
    found = found.get("name") if isinstance(found, Mapping) else found
    return found if isinstance(found, str) else None


def remarks(config: Setting, num_classes: int) -> Iterator[str]:
    """Yield what is far from what the task of a run wants, with what to write instead.

    Args:
        num_classes: of a language model, the words of its vocabulary.
    """
    framework, given = config.framework, config.training.optimizer
    if config.task.name not in _LANGUAGE["task"] or not getattr(framework, "trains", True):
        return
    for default in BY_TASK:
        own = {"adapter": config.adapter.name, "task": config.task.name}
        fits = all(name in default.under.get(what, ()) for what, name in own.items())
        if default.path != "training.optimizer.lr" or not fits or "adam" not in given.name:
            continue
        if given.lr > FAR * default.value:
            yield (
                f"training.optimizer.lr={given.lr:g} is far above what such models take; with this "
                f"adapter {default.value:g} is the default of task={config.task.name}"
            )
    if not isinstance(framework, KDSettings) or num_classes <= MANY:
        return
    if framework.temperature > 1 and any(
        isinstance(wire.row_codec("up"), TopClasses) for wire in config.wires().values()
    ):
        yield (
            f"framework.temperature={framework.temperature:g} softens {num_classes:,} classes of which "
            f"the codec names a few, and the others outweigh them; 1 is the default of language models"
        )
    for direction in DIRECTIONS:
        codecs = [wire.row_codec(direction) for wire in config.wires().values()]
        crosses = direction == "up" or framework.direction != "server"
        if crosses and any(isinstance(codec, FullRows | LogProbabilities) for codec in codecs):
            yield (
                f"wire.{direction} tells all {num_classes:,} classes of every token; the default, "
                f"[{{name: top_classes, k: 16}}], names the sixteen most probable ones"
            )
