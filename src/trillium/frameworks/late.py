"""What a round that goes on without late clients contradicts, whatever the framework."""

from __future__ import annotations

from collections.abc import Iterator

from trillium.errors import UserError
from trillium.federation.setting import Setting


def check_late(name: str, takes_first: bool, config: Setting) -> None:
    """Refuse to go on without late clients where all are needed, or what is counted is who was asked.

    Args:
        takes_first: whether its rounds can be of those that answer first.

    Raises:
        UserError: they cannot be.
    """
    for given, why, instead in _breaks(name, takes_first, config):
        raise UserError(f"{config.late} with {given}", why, instead)


def _breaks(name: str, takes_first: bool, config: Setting) -> Iterator[tuple[str, str, str]]:
    if not takes_first:
        yield (
            f"framework={name}",
            "its rounds are not one question to clients that have each an answer of their own",
            "Leave it out, or write framework=fedllm, fedkseed or kd",
        )
    if config.privacy.unit:
        yield (
            f"privacy={config.privacy.name}",
            "ε is counted for clients that are drawn, and who is first to answer is drawn by nobody",
            "Leave it out, or write privacy=none",
        )
    if config.sums.hides:
        yield (
            f"sums={config.sums.name}",
            "a sum is unmasked once, with those that have given their keys for it",
            "Leave it out and write fleet.min_replies, or write sums=plain",
        )
    if config.fleet.sampling == "cyclic":
        yield (
            "fleet.sampling=cyclic",
            "who was late would miss its turn, and others have theirs",
            "Write fleet.sampling=uniform",
        )
