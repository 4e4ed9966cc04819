"""Settings of Split-FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from trillium.errors import UserError
from trillium.federation.setting import Setting
from trillium.frameworks.split.delta import Delta
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts


def check_split_settings(framework: SplitSettings, config: Setting) -> None:
    """Refuse a configuration that cannot work."""
    if framework.cache:
        _check_cache(framework)
    if framework.leakage and not config.data.public_size:
        raise UserError(
            "framework.leakage=true with data.public_size=0",
            "the attack trains on texts that are not the clients'",
            "Write data.public_size=200 or more",
        )
    for label, tier in config.tiers.items():
        if tier.cut is not None:
            _check_cut(framework, label, tier.cut)
    if framework.local_rounds:
        _check_local_rounds(framework, config)
    if framework.delta is not None:
        _check_delta(framework, framework.delta, config)
    if framework.staleness:
        check_staleness(framework, bool(framework.cache or framework.local_rounds))


def check_staleness(framework: SplitSettings, sends_once: bool) -> None:
    """Refuse to run batches ahead where there are none, or where their gradients would mix."""
    if sends_once:
        raise UserError(
            f"framework.staleness={framework.staleness} with activations that are sent once",
            "the server takes batches from what it keeps, and waits for none of a client",
            "Leave framework.staleness out, or write framework.cache=false",
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
            "what is behind framework.cut trains at the server, what is in front is trained by all",
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
            "a defence alters the same activations otherwise each time",
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


def check_delta(parts: Parts) -> None:
    """Refuse to send the noise of dropout as changes.

    Raises:
        UserError: something in the client's blocks is random.
    """
    if parts.head_is_random:
        raise UserError(
            "framework.delta with dropout in the client's blocks",
            "activations of the same sample would differ each time, and changes never become small",
            "Write model.dropout=0 and adapter.dropout=0, or leave framework.delta out",
        )
