"""Settings of Split-FedLLM that contradict each other, told before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trillium.errors import UserError

if TYPE_CHECKING:
    from trillium.config import ExperimentConfig
    from trillium.frameworks.split import Split


def check_split_settings(framework: Split, config: ExperimentConfig) -> None:
    """Refuse a configuration that cannot work.

    Raises:
        UserError: says which settings, why, and what to write instead.
    """
    if framework.cache:
        _check_cache(framework)


def _check_cache(framework: Split) -> None:
    """Refuse to send once what changes, or what nobody would train on."""
    if framework.train != "server":
        raise UserError(
            f"framework.cache=true with framework.train={framework.train}",
            "the client's blocks train, so the activations of a sample change with every step",
            "Write framework.train=server, or leave framework.cache out",
        )
    if framework.shape != "two_part":
        raise UserError(
            f"framework.cache=true with framework.shape={framework.shape}",
            "the server has no labels to train on alone",
            "Write framework.shape=two_part, or leave framework.cache out",
        )
    if framework.mode != "coalesced":
        raise UserError(
            f"framework.cache=true with framework.mode={framework.mode}",
            "the server trains on batches of all samples that it has, and no client takes turns",
            "Leave framework.mode out, or framework.cache",
        )
