"""Tasks that compare two texts, and what of a run cannot be had with them."""

from __future__ import annotations

from collections.abc import Iterator

from trillium.errors import UserError
from trillium.federation.setting import Setting


def check_pairs(compares: bool, config: Setting) -> None:
    """Refuse what has no reference, or looks at texts one by one.

    Args:
        compares: whether the framework can train on pairs.
    """
    if not compares:
        raise UserError(
            f"framework={config.framework.name} with task={config.task.name}",
            "it exchanges predictions of single texts, and a preference is of two against a reference",
            "Write framework=fedllm or framework=split",
        )
    for given, why, instead in _breaks(config):
        raise UserError(f"{given} with task={config.task.name}", why, instead)


def _breaks(config: Setting) -> Iterator[tuple[str, str, str]]:
    adapter = config.adapter
    if not adapter.comes_off:
        yield (
            f"adapter={adapter.name}",
            "the reference is the model with its adapter off, and what this one trains cannot be "
            "taken off",
            "Write adapter=lora",
        )
    if adapter.goes_on_from is not None:
        yield (
            f"adapter.from={adapter.goes_on_from}",
            "with its adapter off the model is not the one that training goes on from, which is to "
            "be the reference",
            "Merge it first (trillium export --merge), and name the merged model as model.id",
        )
    if config.privacy.unit == "example":
        yield (
            "privacy=example",
            "an example is two texts, and what each of them adds is bounded alone",
            "Write privacy=client",
        )
