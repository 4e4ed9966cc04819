"""Settings of FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from trillium.component import known
from trillium.errors import UserError, suggest
from trillium.federation.server import Server
from trillium.federation.setting import Setting
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.aggregators.mean import Mean
from trillium.frameworks.fedllm.buffer_checks import breaks_of_buffer
from trillium.frameworks.fedllm.settings import FedLLMSettings
from trillium.models.adapters.lora import Lora
from trillium.models.factors import adapts_experts
from trillium.models.slots import matches
from trillium.wire.kinds import Kind


def check_fedllm(framework: FedLLMSettings, config: Setting) -> None:
    """Refuse a configuration that cannot work."""
    _check_aggregator(framework, config)
    _check_tiers(framework, config)
    _check_codecs(framework, config)
    for given, why, instead in _breaks(framework, config) if config.privacy.unit else ():
        raise UserError(f"{given} with privacy={config.privacy.name}", why, instead)
    for given, why, instead in _breaks_sums(framework) if config.sums.hides else ():
        raise UserError(f"{given} with sums={config.sums.name}", why, instead)
    for given, why, instead in breaks_of_buffer(framework, config) if framework.buffer else ():
        raise UserError(f"framework.asynchronous with {given}", why, instead)
    if framework.mask.name != "all" and not isinstance(config.adapter, Lora):
        raise UserError(
            f"framework.mask={framework.mask.name} with adapter={config.adapter.name}",
            "it chooses between the factors of LoRA",
            "Write adapter=lora, or framework.mask=all",
        )
    if framework.upload == "gradient" and framework.drift.name != "none":
        raise UserError(
            f"framework.upload=gradient with framework.drift={framework.drift.name}",
            "clients that send one gradient take no steps of their own, so they cannot drift",
            "Write framework.drift=none, or framework.upload=update",
        )


def _check_aggregator(framework: FedLLMSettings, config: Setting) -> None:
    rule = framework.aggregator
    given = f"framework.aggregator={rule.name}"
    if rule.reads == "state" and framework.upload == "gradient":
        raise UserError(
            f"{given} with framework.upload=gradient",
            "it works on the factors that clients have trained, and a gradient is not a factor",
            "Write framework.upload=update",
        )
    if rule.reads == "state" and framework.server_optimizer is not None:
        raise UserError(
            f"{given} with framework.server_optimizer={framework.server_optimizer.name}",
            "its result is the new state, and an optimiser needs a change",
            "Leave framework.server_optimizer out, or write framework.aggregator=mean",
        )
    if rule.reads == "state" and not isinstance(config.adapter, Lora):
        raise UserError(
            f"{given} with adapter={config.adapter.name}",
            "it works on the factors of LoRA",
            "Write adapter=lora, or framework.aggregator=mean",
        )
    if rule.reads == "state" and any("lora" in pattern for pattern in framework.local):
        raise UserError(
            f"{given} with framework.local={list(framework.local)}",
            "it needs both factors of every client",
            "Write framework.aggregator=mean, which allows one factor to stay with the clients",
        )
    if rule.folds and config.model.quantize != "none":
        raise UserError(
            f"{given} with model.quantize={config.model.quantize}",
            "it changes the base weights, and quantised ones cannot be changed",
            f"Write model.quantize=none, or one of framework.aggregator="
            f"{_aggregators(lambda other: not other.folds)}",
        )
    if rule.folds and config.task.compares:
        raise UserError(
            f"{given} with task={config.task.name}",
            "it changes the base weights, and the model without its adapter is the reference",
            f"Write one of framework.aggregator={_aggregators(lambda other: not other.folds)}",
        )
    least = framework.buffer or config.fleet.taken(config.data.num_clients)
    cohort = config.fleet.min_replies or least
    if rule.min_clients > cohort:
        raise UserError(
            f"{given} with {cohort} clients in a round",
            f"it needs at least {rule.min_clients}",
            f"Ask {rule.min_clients} clients or more, or set the rule to withstand fewer faulty ones",
        )
    if rule.restarts and framework.download.name != "state":
        raise UserError(
            f"{given} with framework.download={framework.download.name}",
            "adapters start anew in each round, so there is no earlier state to change",
            "Write framework.download=state; what starts anew is drawn from the seed and not sent",
        )
    for where, wire in config.wires().items():
        if rule.folds and not wire.is_lossless("snapshot", "down"):
            raise UserError(
                f"{given} with a lossy codec for the kind snapshot in {where}.down",
                "the changes of base weights that it sends must be the same on all sides",
                "Take snapshot out of the codec's kinds",
            )
    if rule.reads == "state" and isinstance(config.adapter, Lora) and config.adapter.dora:
        raise UserError(
            f"{given} with adapter.dora=true",
            "DoRA's change is not the product of its factors, so their exact product is useless",
            "Write adapter.dora=false, or framework.aggregator=mean",
        )


def _check_tiers(framework: FedLLMSettings, config: Setting) -> None:
    rule = framework.aggregator
    for label, tier in config.tiers.items():
        given = f"tiers.{label}.rank={tier.rank}"
        if tier.rank is not None and not isinstance(config.adapter, Lora):
            raise UserError(
                f"{given} with adapter={config.adapter.name}",
                "it has no rank",
                "Write adapter=lora",
            )
        if tier.rank is not None and isinstance(config.adapter, Lora):
            if tier.rank > config.adapter.r:
                raise UserError(
                    f"{given} with adapter.r={config.adapter.r}",
                    "clients hold components of the server's adapter, and cannot have more than it has",
                    f"Write adapter.r={tier.rank} or more",
                )
            if not rule.mixes_ranks and tier.rank != config.adapter.r:
                raise UserError(
                    f"{given} with framework.aggregator={rule.name}",
                    "it cannot take clients of different ranks",
                    "Write one of framework.aggregator="
                    f"{_aggregators(lambda other: other.mixes_ranks)}",
                )
            if framework.drift.answers:
                raise UserError(
                    f"{given} with framework.drift={framework.drift.name}",
                    "control variates of different ranks have no mean",
                    "Write framework.drift=none or prox",
                )
        if tier.layers is not None and not rule.takes_parts:
            raise UserError(
                f"tiers.{label}.layers={list(tier.layers)} with framework.aggregator={rule.name}",
                "it compares whole updates, so all clients must send all tensors",
                f"Write one of framework.aggregator={_aggregators(lambda other: other.takes_parts)}",
            )


def _check_codecs(framework: FedLLMSettings, config: Setting) -> None:
    for where, wire in config.wires().items():
        for codec in (c for c in wire.up if c.expands and "parameters" in c.kinds):
            if framework.feedback > 0:
                raise UserError(
                    f"{where}.up: {codec.name} with framework.feedback={framework.feedback}",
                    "its error can be larger than the tensor, so what is carried over would grow",
                    "Write framework.feedback=0, or use its biased form: rounding=nearest",
                )
        for codec in (c for c in wire.down if c.expands and "parameters" in c.kinds):
            raise UserError(
                f"{where}.down: {codec.name}",
                "its error can be larger than the tensor, and the next download carries it over",
                "Use its biased form: rounding=nearest",
            )


def _breaks(framework: FedLLMSettings, config: Setting) -> Iterator[tuple[str, str, str]]:
    """Yield what would leave a client in a private run without being covered."""
    unit = config.privacy.unit
    if framework.weights != "equal":
        yield (
            f"framework.weights={framework.weights}",
            "it sends how much data each client has, and lets some count for more than the bound",
            "Write framework.weights=equal",
        )
    if framework.drift.answers:
        yield (
            f"framework.drift={framework.drift.name}",
            "its control variates are gradients of a client's data, sent beside the update",
            "Write framework.drift=none or prox",
        )
    if framework.local:
        yield (
            f"framework.local={list(framework.local)}",
            "the clients' own models are measured on their data, and the figures leave them",
            "Leave framework.local out",
        )
    if unit == "client" and not isinstance(framework.aggregator, Mean):
        yield (
            f"framework.aggregator={framework.aggregator.name}",
            "it looks at each update by itself, and the noise is for their sum",
            "Write framework.aggregator=mean",
        )
    if unit == "example" and framework.upload == "gradient":
        yield (
            "framework.upload=gradient",
            "noise is added where a client takes a step, and so it takes none",
            "Write framework.upload=update",
        )
    if unit == "client" and framework.upload == "parameters":
        yield (
            "framework.upload=parameters",
            "what is bounded is how far a client moves the state, not where the state lies",
            "Write framework.upload=update",
        )
    kind: Kind = "gradients" if framework.upload == "gradient" else "parameters"
    lossy = any(not wire.is_lossless(kind, "up") for wire in config.wires().values())
    if unit == "client" and framework.feedback > 0 and lossy:
        yield (
            f"framework.feedback={framework.feedback} with a lossy codec in wire.up",
            "what a codec lost of one round would come again in another, beyond the bound of both",
            "Write framework.feedback=0",
        )


def _breaks_sums(framework: FedLLMSettings) -> Iterator[tuple[str, str, str]]:
    """Yield what would have to be seen of a single client, or would let masks not cancel."""
    if framework.weights != "equal":
        yield (
            f"framework.weights={framework.weights}",
            "weights that far apart would leave small clients a few steps of the whole numbers",
            "Write framework.weights=equal",
        )
    if framework.drift.answers:
        yield (
            f"framework.drift={framework.drift.name}",
            "the server keeps a control variate of each client",
            "Write framework.drift=none or prox",
        )
    if framework.local:
        yield (
            f"framework.local={list(framework.local)}",
            "the clients' own models are measured one by one",
            "Leave framework.local out",
        )
    if not isinstance(framework.aggregator, Mean):
        yield (
            f"framework.aggregator={framework.aggregator.name}",
            "it looks at each update by itself, and the server sees their sum alone",
            "Write framework.aggregator=mean",
        )
    if framework.upload == "parameters":
        yield (
            "framework.upload=parameters",
            "whole numbers are for changes: values differ far less than they are large",
            "Write framework.upload=update",
        )
    if framework.download.name != "state":
        yield (
            f"framework.download={framework.download.name}",
            "who comes late is sent other bytes, masks are bound to these, and would not cancel",
            "Write framework.download=state",
        )


def check_shares(framework: FedLLMSettings, server: Server) -> None:
    """Refuse patterns and layers that the model does not have, and clients that train nothing.

    Raises:
        UserError: before the first round, as soon as the model is there.
    """
    model, aggregator = server.model, framework.aggregator
    if (aggregator.folds or aggregator.mixes_ranks) and adapts_experts(model.module):
        raise UserError(
            f"framework.aggregator={aggregator.name} with adapters on tensors of experts",
            "it combines products of two factors, and each expert in such a tensor has its own",
            "Write framework.aggregator=mean, or leave adapter.experts out",
        )
    for pattern in framework.local:
        if not any(matches(name, [pattern]) for name in model.initial):
            parts = {part for name in model.initial for part in name.split(".")}
            raise UserError(
                f"framework.local={list(framework.local)}",
                f"no tensor that trains is called {pattern}",
                suggest(pattern, {"head", *parts}),
            )
    for tier in {id(tier): tier for tier in server.tiers.values()}.values():
        given = f"a tier with layers={list(tier.layers or ())}"
        if any(layer >= model.num_blocks or layer < 0 for layer in tier.layers or ()):
            raise UserError(
                given,
                f"the model has {model.num_blocks} blocks",
                f"Write layers from 0 to {model.num_blocks - 1}",
            )
        found = framework.share(server, tier)
        if not found.trained:
            raise UserError(
                given if tier.layers is not None else f"framework.mask={framework.mask.name}",
                "these clients hold nothing that trains, so they could not learn",
                "Name layers that have an adapter, or leave training.lr_factors=0 out",
            )


def _aggregators(accepts: object) -> str:
    assert callable(accepts)
    return ", ".join(n for n, member in known(Aggregator).items() if accepts(member()))
