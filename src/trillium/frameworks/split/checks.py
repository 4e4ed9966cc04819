"""Settings of Split-FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from trillium.errors import UserError
from trillium.federation.setting import Setting
from trillium.frameworks.split.delta import Delta
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.training.settings import Training


def check_split_settings(framework: SplitSettings, config: Setting) -> None:
    """Refuse a configuration that cannot work."""
    if framework.cache:
        _check_cache(framework)
    if framework.tail is not None and framework.tail <= framework.cut:
        raise UserError(
            f"framework.tail={framework.tail} with framework.cut={framework.cut}",
            "the server needs a block at least between the client's parts",
            f"Write framework.tail={framework.cut + 1} or more",
        )
    if config.adapter.virtual_tokens:
        raise UserError(
            f"adapter={config.adapter.name} with framework=split",
            "its virtual tokens enter beside the blocks and cannot be cut with them",
            "Write adapter=lora, or framework=fedllm",
        )
    _check_dropout(framework, config)
    if framework.shape == "two_part" and getattr(config.task, "logit_adjustment", 0.0) > 0:
        raise UserError(
            f"task={config.task.to_config()} with framework.shape=two_part",
            "the server computes the loss, and does not know how often a client's classes occur",
            "Write framework.shape=u, where the client does, or leave task.logit_adjustment out",
        )
    if config.task.compares:
        _check_pairs(framework, config)
    if framework.shape == "two_part" and framework.mode == "coalesced" and framework.cache:
        for label, tier in config.tiers.items():
            if tier.local_steps is not None:
                raise no_steps(label)
    for label, tier in config.tiers.items():
        if tier.cut is not None:
            _check_cut(framework, label, tier.cut)
    if framework.local_rounds:
        _check_local_rounds(framework, config)
    if framework.delta is not None:
        _check_delta(framework, framework.delta, config)
    if framework.staleness:
        check_staleness(framework, bool(framework.cache or framework.local_rounds))


def _check_pairs(framework: SplitSettings, config: Setting) -> None:
    """Refuse what is made for single texts where an example is two."""
    once = framework.train == "server" and framework.cache is not False
    wrong = (
        (once, f"train=server, cache={str(framework.cache).lower()}", "cache=false"),
        (framework.local_rounds, f"local_rounds={framework.local_rounds}", "local_rounds=0"),
        (framework.delta, "delta", "delta=null"),
        (framework.defence.name != "none", f"defence={framework.defence.name}", "defence=none"),
        (framework.leakage, "leakage=true", "leakage=false"),
    )
    for is_set, given, instead in wrong:
        if is_set:
            raise UserError(
                f"framework.{given} with task={config.task.name}",
                "it is made for single texts, and here two cross together, each with and without "
                "the adapter",
                f"Write framework.{instead}",
            )


def no_steps(label: str) -> UserError:
    """Return why clients take no steps of their own on activations that the server keeps."""
    return UserError(
        f"tiers.{label}.local_steps with activations that are sent once",
        "the server trains on the activations of all clients together, for as long as training says",
        "Write training.local_steps, or framework.mode=splitfed_v2, where clients take turns",
    )


def check_staleness(framework: SplitSettings, sends_once: bool) -> None:
    """Refuse to run batches ahead where there are none, or where their gradients would mix."""
    if sends_once:
        raise UserError(
            f"framework.staleness={framework.staleness} with activations that are sent once",
            "the server takes batches from what it keeps, and waits for no client",
            "Leave framework.staleness out, or write framework.cache=false",
        )


def _check_dropout(framework: SplitSettings, config: Setting) -> None:
    """Refuse random activations where they are to be the same each time.

    The model's own configuration may have more dropout than is set here.
    """
    adapters = getattr(config.adapter, "dropout", 0.0)
    rates = {"model.dropout": config.model.dropout, "adapter.dropout": adapters}
    random = next((f"{name}={rate}" for name, rate in rates.items() if rate), None)
    cuts_differ = any(tier.cut is not None for tier in config.tiers.values())
    if random and (framework.cache or framework.local_rounds or cuts_differ):
        raise once_and_random(random)
    if random and framework.delta is not None:
        raise changes_and_random(random)


def once_and_random(given: str) -> UserError:
    """Return why random activations are not sent once."""
    return UserError(
        f"{given} with activations that are sent once",
        "the activations of a sample would be different each time",
        "Write model.dropout=0 and adapter.dropout=0, or leave framework.cache, "
        "framework.local_rounds and the cuts of tiers out",
    )


def changes_and_random(given: str) -> UserError:
    """Return why random activations are not sent as changes."""
    return UserError(
        f"framework.delta with {given}",
        "activations of the same sample would differ each time, and changes never become small",
        "Write model.dropout=0 and adapter.dropout=0, or leave framework.delta out",
    )


def _check_cache(framework: SplitSettings) -> None:
    """Refuse to send once what changes."""
    if framework.train != "server":
        raise UserError(
            f"framework.cache=true with framework.train={framework.train}",
            "the client's blocks train, so the activations of a sample change with every step",
            "Write framework.train=server, or leave framework.cache out",
        )


def _check_cut(framework: SplitSettings, label: str, cut: int) -> None:
    """Refuse clients with blocks that others train, or with more than are frozen."""
    if framework.train != "server" or framework.cache is False:
        raise UserError(
            f"tiers.{label}.cut={cut} with framework.train={framework.train}, "
            f"cache={framework.cache}",
            "clients can differ in their blocks only where these are frozen and activations sent once",
            "Write framework.train=server, and leave cache out",
        )
    if cut > framework.cut or framework.local_rounds:
        raise UserError(
            f"tiers.{label}.cut={cut} with framework.cut={framework.cut}, "
            f"local_rounds={framework.local_rounds}",
            "the blocks behind framework.cut train at the server, those in front of it at all clients",
            f"Write a cut of at most {framework.cut}, and framework.local_rounds=0",
        )


def _check_local_rounds(framework: SplitSettings, config: Setting) -> None:
    """Refuse rounds of the clients alone without others, or before rounds that undo them."""
    if framework.local_rounds >= config.rounds:
        raise UserError(
            f"framework.local_rounds={framework.local_rounds} with rounds={config.rounds}",
            "no round is left for the server's blocks",
            f"Write rounds={framework.local_rounds + 1} or more",
        )
    if framework.train != "server" or framework.cache is False:
        raise UserError(
            f"framework.local_rounds={framework.local_rounds} with framework.train="
            f"{framework.train}, cache={framework.cache}",
            "after these rounds the first blocks are frozen, and their activations sent once",
            "Write framework.train=server, and leave cache out",
        )


def _check_delta(framework: SplitSettings, delta: Delta, config: Setting) -> None:
    """Refuse changes where nothing or everything changes, and feedback that would diverge."""
    if framework.defence.name != "none":
        raise UserError(
            f"framework.delta with framework.defence={framework.defence.name}",
            "a defence alters the same activations differently each time",
            "Leave one of them out",
        )
    if framework.train == "server":
        raise UserError(
            "framework.delta with framework.train=server",
            "activations that do not change are sent once",
            "Leave framework.delta out, or write framework.train=both",
        )
    for codec in (c for wire in config.wires().values() for c in wire.stack("gradients", "down")):
        if delta.feedback and codec.expands:
            raise UserError(
                f"wire.down: {codec.name} with framework.delta.feedback={delta.feedback}",
                "its error may be larger than the gradient, and would grow from epoch to epoch",
                "Choose another codec for gradients, or write framework.delta.feedback=0",
            )


def check_measured(config: Setting) -> None:
    """Refuse to measure across the cut what takes a second pass without the adapter.

    Raises:
        UserError: texts are compared, and clients are to measure.
    """
    if config.evaluation.where != "server" and config.task.compares:
        raise UserError(
            f"evaluation.where={config.evaluation.where} with task={config.task.name} under "
            "framework=split",
            "rewards are against the model without its adapter, whose activations cross in training "
            "alone",
            "Write evaluation.where=server, or framework=fedllm",
        )


def check_fixed(parts: Parts) -> None:
    """Refuse to send activations once that would be others the next time.

    Raises:
        UserError: something in the client's blocks is random.
    """
    if parts.head_is_random:
        raise once_and_random("dropout in the client's blocks")


def check_delta(parts: Parts) -> None:
    """Refuse to send the noise of dropout as changes.

    Raises:
        UserError: something in the client's blocks is random.
    """
    if parts.head_is_random:
        raise changes_and_random("dropout in the client's blocks")


def check_parts(framework: SplitSettings, parts: Parts, training: Training) -> None:
    """Refuse a cut model of which nothing trains, or not what is to train first.

    Raises:
        UserError: before the first round, as soon as the model is cut.
    """
    at_server = framework.train != "client" and training.trained(parts.body.names)
    if not at_server and not framework.client_names(parts, training):
        raise UserError(
            f"framework.train={framework.train} with framework.cut={framework.cut}",
            "no tensor that trains lies in a part that is to train, so nothing could learn",
            "Write framework.train=both, another cut, or an adapter in more layers",
        )
    if framework.local_rounds and not training.trained(parts.head.names):
        raise UserError(
            f"framework.local_rounds={framework.local_rounds} with framework.cut={framework.cut}",
            "nothing in the clients' first blocks trains, so they would learn nothing by themselves",
            "Write framework.local_rounds=0, a deeper cut, or an adapter in the first blocks",
        )
