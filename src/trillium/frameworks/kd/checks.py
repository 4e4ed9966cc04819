"""Settings of KD-FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.errors import UserError
from trillium.frameworks.kd.ensembles import NoisyMean
from trillium.frameworks.kd.hiddens.none import NoHidden
from trillium.frameworks.kd.selections import Random
from trillium.wire.codecs.rows import RowCodec
from trillium.wire.codecs.top_classes import TopClasses

if TYPE_CHECKING:
    from trillium.federation.setting import Setting
    from trillium.frameworks.kd.settings import KDSettings


def check_kd(framework: KDSettings, config: Setting) -> None:
    """Refuse a configuration that cannot work.

    Raises:
        UserError: says which settings, why, and what to write instead.
    """
    framework.filter.check(config)
    framework.selection.check(config)
    config.data.public.check(config.task)
    _check_written(framework, config)
    _check_selection(framework)
    _check_hidden(framework, config)
    given = f"framework.ensemble={framework.ensemble.name}"
    if framework.ensemble.needs_labels and not framework.public_labels:
        raise UserError(
            f"{given} with framework.public_labels=false",
            "it compares the clients on the labels of the public set",
            "Write framework.public_labels=true, or framework.ensemble=confidence",
        )
    if framework.ensemble.needs_counts and config.task.peft_task != "SEQ_CLS":
        raise UserError(
            f"{given} with task={config.task.name}",
            "it counts examples by class",
            "Write framework.ensemble=confidence",
        )
    size = framework.public_per_round
    if size is not None and size > config.data.public_size:
        raise UserError(
            f"framework.public_per_round={size} with data.public_size={config.data.public_size}",
            "a round cannot be about more examples than there are",
            f"Write at most {config.data.public_size}, or raise data.public_size",
        )
    for where, up, down in _row_codecs(config):
        if up.unbiased and framework.temperature != 1:
            raise UserError(
                f"{where}.up: {up.name} with framework.temperature={framework.temperature}",
                "the shares of what was drawn are right on average; softened shares are not",
                "Write framework.temperature=1, or the codec top_classes",
            )
        if framework.resend is not None and isinstance(up, TopClasses) and _has_budget(up):
            raise UserError(
                f"{where}.up: {up.name} with a budget and framework.resend={framework.resend}",
                "labels of several rounds are used together, and would be of different lengths",
                "Write a fixed k for what goes up, or framework.resend=null",
            )
        if framework.cache_rounds > 1 and isinstance(down, TopClasses) and _has_budget(down):
            raise UserError(
                f"{where}.down: {down.name} with a budget and framework.cache_rounds="
                f"{framework.cache_rounds}",
                "labels of several rounds are used together, and would be of different lengths",
                "Write a fixed k for what goes down, or framework.cache_rounds=1",
            )


def _check_written(framework: KDSettings, config: Setting) -> None:
    """Refuse to use labels of texts that the server writes, which have none."""
    for given, uses_labels, instead in (
        ("public_labels=true", framework.public_labels, "public_labels=false"),
        (
            f"ensemble={framework.ensemble.name}",
            framework.ensemble.needs_labels,
            "ensemble=confidence",
        ),
    ):
        if uses_labels and config.data.public.is_written:
            raise UserError(
                f"framework.{given} with data.public={config.data.public.name}",
                "texts that the server writes have no labels",
                f"Write framework.{instead}, or data.public=rows",
            )


def _check_selection(framework: KDSettings) -> None:
    """Refuse a selection that has nothing to select from, or nobody to ask."""
    given = f"framework.selection={framework.selection.name}"
    if framework.public_per_round is None and not isinstance(framework.selection, Random):
        raise UserError(
            f"{given} without framework.public_per_round",
            "each round is about the whole public set",
            "Write framework.public_per_round, fewer than data.public_size",
        )
    if framework.selection.needs_learner and framework.direction == "client":
        raise UserError(
            f"{given} with framework.direction=client",
            "it asks the server's model, which does not learn then",
            "Write framework.direction=both, or framework.selection=diverse",
        )


def _check_hidden(framework: KDSettings, config: Setting) -> None:
    """Refuse hidden states where labels of old rounds are used, or labels have noise."""
    framework.hidden.check(config)
    given = f"framework.hidden={framework.hidden.name}"
    if isinstance(framework.hidden, NoHidden):
        return
    if framework.cache_rounds > 1:
        raise UserError(
            f"{given} with framework.cache_rounds={framework.cache_rounds}",
            "labels are kept for several rounds, hidden states are not",
            "Write framework.cache_rounds=1, or framework.hidden=none",
        )
    if isinstance(framework.ensemble, NoisyMean):
        raise UserError(
            f"{given} with framework.ensemble={framework.ensemble.name}",
            "the teacher's hidden states would tell what the noise on its labels is to hide",
            "Write framework.hidden=none",
        )


def _has_budget(codec: TopClasses) -> bool:
    return codec.max_bytes is not None or codec.seconds is not None


def _row_codecs(config: Setting) -> list[tuple[str, RowCodec, RowCodec]]:
    """Return the codecs of rows of the run and of its tiers, by where they are written."""
    wires = {"wire": config.wire} | {
        f"tiers.{label}": tier.wire(config.wire) for label, tier in config.tiers.items()
    }
    return [(where, wire.row_codec("up"), wire.row_codec("down")) for where, wire in wires.items()]
