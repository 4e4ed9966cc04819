"""Settings of KD-FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from trillium.errors import UserError
from trillium.federation.setting import Setting
from trillium.frameworks.effects import DIRECTIONS
from trillium.frameworks.kd.settings import KDSettings
from trillium.wire.codecs.log_probabilities import LogProbabilities
from trillium.wire.codecs.rows import FullRows
from trillium.wire.codecs.top_classes import TopClasses


def check_kd(framework: KDSettings, config: Setting) -> None:
    """Refuse a configuration that cannot work."""
    config.data.public.check(config.task)
    _check_written(framework, config)
    if config.task.says_values:
        _check_values(framework, config)
    hides = {"sums": config.sums.hides, "privacy": bool(config.privacy.unit)}
    for setting in (name for name, is_on in hides.items() if is_on):
        for broken, why, instead in _breaks(framework, config):
            name = getattr(config, setting).name
            raise UserError(f"{broken} with {setting}={name}", why, instead)
    given = f"framework.ensemble={framework.ensemble.name}"
    if framework.ensemble.needs_labels and not framework.public_labels:
        raise UserError(
            f"{given} with framework.public_labels=false",
            "it compares the clients on the labels of the public set",
            "Write framework.public_labels=true, or framework.ensemble=confidence",
        )
    if framework.ensemble.needs_counts and not config.task.has_classes:
        raise UserError(
            f"{given} with task={config.task.name}",
            "it counts examples by class",
            "Write framework.ensemble=confidence",
        )
    size = framework.public_per_round
    if size is not None and size > config.public_size:
        raise UserError(
            f"framework.public_per_round={size} with data.public_size={config.public_size}",
            "a round cannot use more examples than there are",
            f"Write at most {config.public_size}, or raise data.public_size",
        )
    for where, wire in config.wires().items():
        up, down = wire.row_codec("up"), wire.row_codec("down")
        if up.unbiased and framework.temperature != 1:
            raise UserError(
                f"{where}.up: {up.name} with framework.temperature={framework.temperature}",
                "the shares of a sample are right on average, but softened shares are not",
                "Write framework.temperature=1, or the codec top_classes",
            )
        if framework.cache_rounds > 1 and isinstance(down, TopClasses) and _has_budget(down):
            raise UserError(
                f"{where}.down: {down.name} with a budget and framework.cache_rounds="
                f"{framework.cache_rounds}",
                "labels of several rounds are used together, and would be of different lengths",
                "Write a fixed k for wire.down, or framework.cache_rounds=1",
            )


def _breaks(framework: KDSettings, config: Setting) -> Iterator[tuple[str, str, str]]:
    """Yield what cannot be had of a sum of soft labels alone."""
    ensemble = framework.ensemble
    if not ensemble.adds:
        yield (
            f"framework.ensemble={ensemble.name}",
            "it weighs the opinion of each client, and the server is to see their sum alone",
            "Write framework.ensemble=mean, or vote",
        )
    elif config.privacy.unit and ensemble.averages:
        yield (
            f"framework.ensemble={ensemble.name}",
            "soft labels that are scaled to a bound do not add up to their mean; votes have one length",
            "Write framework.ensemble=vote",
        )
    if framework.direction == "client":
        yield (
            "framework.direction=client",
            "what is reported are the clients' own models, measured one by one",
            "Write framework.direction=both, or server",
        )
    if config.has_other_models and config.task.peft_task == "CAUSAL_LM":
        yield (
            "server or tiers with model or adapter",
            "clients of another tokenizer speak of other tokens, which have no sum",
            "Leave model and adapter out there",
        )


def _check_values(framework: KDSettings, config: Setting) -> None:
    """Refuse what makes no sense of numbers, of which soft labels are the odds of two outcomes."""
    task = f"task={config.task.name}"
    found = [
        (
            f"framework.ensemble={framework.ensemble.name}",
            not framework.ensemble.takes_values,
            "it weighs probabilities, or counts votes",
            "Write framework.ensemble=size_weighted, or mean",
        ),
        (
            f"framework.average={framework.average}",
            framework.average != "logits",
            "numbers have a mean where logits are averaged",
            "Write framework.average=logits",
        ),
        (
            f"framework.sharpening={framework.sharpening.name}",
            framework.sharpening.name != "none",
            "a sharper distribution is another number",
            "Write framework.sharpening=none",
        ),
        (
            f"privacy={config.privacy.name}",
            bool(config.privacy.unit),
            "what hides clients are votes, and numbers are none",
            "Write framework=fedllm, or privacy=none",
        ),
    ]
    for where, wire in config.wires().items():
        for direction in DIRECTIONS:
            codec = wire.row_codec(direction)
            found.append(
                (
                    f"{where}.{direction}: {codec.name}",
                    not isinstance(codec, FullRows | LogProbabilities),
                    "it keeps the probable classes, and both say the number",
                    "Write the codec log_probabilities, or none",
                )
            )
    for given, is_wrong, why, instead in reversed(found):
        if is_wrong:
            raise UserError(f"{given} with {task}", why, instead)


def _check_written(framework: KDSettings, config: Setting) -> None:
    """Refuse to use labels of texts that the server writes, which have none."""
    ensemble = framework.ensemble
    for given, uses_labels, instead in (
        ("public_labels=true", framework.public_labels, "public_labels=false"),
        (f"ensemble={ensemble.name}", ensemble.needs_labels, "ensemble=confidence"),
    ):
        if uses_labels and config.data.public.is_written:
            raise UserError(
                f"framework.{given} with data.public={config.data.public.name}",
                "texts that the server writes have no labels",
                f"Write framework.{instead}, or data.public=rows",
            )


def _has_budget(codec: TopClasses) -> bool:
    return codec.max_bytes is not None or codec.seconds is not None
