"""Runs in which sums are masked: both halves of it, and which settings would break it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from trillium.errors import UserError
from trillium.extras import install
from trillium.federation.client import Client
from trillium.federation.setting import Setting
from trillium.federation.side import Side
from trillium.frameworks.private import fewest_of, noise_of, whole_of
from trillium.privacy.client import ClientLevel
from trillium.privacy.sums import FEWEST, Masked, Shares

if TYPE_CHECKING:
    from trillium.federation.masked import MaskedSums
    from trillium.privacy.masks import Masks

LARGEST: Final = 100.0  # noise over the bound where clients add it: it is drawn from a table


def sums_of(config: Setting, server: Side, *, on_paper: bool = False) -> MaskedSums | None:
    """Return the server's half of masked sums, if a run has them.

    Raises:
        UserError: what makes masks is not installed.
    """
    if not isinstance(config.sums, Masked):
        return None
    _check_installed()
    from trillium.federation.masked import MaskedSums

    return MaskedSums(config.sums, server, on_paper)


def masks_of(config: Setting, client: Client, *, on_paper: bool = False) -> Masks | None:
    """Return a client's half of masked sums, if a run has them.

    Raises:
        UserError: what makes masks is not installed.
    """
    if not isinstance(config.sums, Masked):
        return None
    _check_installed()
    from trillium.privacy.masks import Masks

    least = config.fleet.min_replies or config.fleet.clients_per_round or FEWEST - 1
    fewest = fewest_of(config)
    shares = None if fewest is None else Shares(noise_of(config), fewest)
    if shares is not None and shares.noise > LARGEST:
        raise UserError(
            f"a noise of {shares.noise:.3g} times the bound, in shares",
            "nothing of what clients add would be left, and whole numbers follow from the noise",
            f"Write privacy.noise, at most {LARGEST:g}, or a larger privacy.epsilon",
        )
    return Masks(config.sums, client, least, on_paper, noise=shares)


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise UserError(
            "sums=masked", "the package cryptography is not installed", install("privacy")
        ) from error


def check_masked(name: str, only_adds: bool, config: Setting) -> None:
    """Refuse what cannot be had of sums alone, whatever the framework.

    Args:
        only_adds: whether all that its clients send is only added up.

    Raises:
        UserError: something would have to be seen of a single client.
    """
    for given, why, instead in _breaks(name, only_adds, config):
        raise UserError(f"{given} with sums=masked", why, instead)


def _breaks(name: str, only_adds: bool, config: Setting) -> Iterator[tuple[str, str, str]]:
    fleet = config.fleet
    cohort = fleet.clients_per_round or config.data.num_clients
    if not only_adds:
        yield (
            f"framework={name}",
            "what its clients send is looked at one by one",
            "Write framework=fedllm, fedkseed or kd, or sums=plain",
        )
    if getattr(config.head, "runs_model", False) and whole_of(config) is None:
        yield (
            f"head={config.head.name}",
            "its statistics and losses are looked at one by one",
            "Write head=class_sums, or head=random",
        )
    if isinstance(config.privacy, ClientLevel):
        yield from _breaks_of_clients(config.privacy, config)
    if cohort < FEWEST:
        yield (
            f"a cohort of {cohort}",
            "in a sum of so few each could be told from the others",
            f"Ask {FEWEST} clients or more",
        )
    if fleet.min_replies is not None and 2 * fleet.min_replies <= cohort:
        yield (
            f"fleet.min_replies={fleet.min_replies} of {cohort} clients",
            "half of the clients could bring back both secrets of one of them",
            f"Write {cohort // 2 + 1} or more",
        )
    for where, wire in config.wires().items():
        if wire.down != config.wire.down:
            yield (
                f"{where} with codecs down of its own",
                "masks are bound to what clients are sent, and would not cancel",
                "Write the same wire.down for all",
            )
    for label, tier in config.tiers.items():
        if tier.rank is not None or tier.layers is not None:
            yield (
                f"tiers.{label} with rank or layers",
                "its clients would add to a part of the sum, and all must add to the whole",
                "Leave rank and layers out",
            )


def _breaks_of_clients(privacy: ClientLevel, config: Setting) -> Iterator[tuple[str, str, str]]:
    """Yield what cannot be where clients add the noise themselves, each its share."""
    if config.fleet.min_replies is None:
        yield (
            "privacy=client without fleet.min_replies",
            "each client adds its share of the noise, which follows from how few may be in a sum",
            "Write fleet.min_replies, such as seven of ten",
        )
    if privacy.noise == 0:
        yield (
            "privacy.noise=0",
            "whole numbers follow from the noise, and there is none",
            "Write privacy=none, or noise above 0",
        )
    if privacy.clip.learns:
        yield (
            f"privacy.clip={privacy.clip.name}",
            "whether a client was below the bound would be one more number, with noise of its own",
            "Write privacy.clip={name: fixed, norm: 1}",
        )
    if privacy.population is not None:
        yield (
            f"privacy.population={privacy.population}",
            "the server knows who is in a sum, so no cohort is drawn in secret",
            "Leave it out",
        )
    if config.sums != Masked(peers=getattr(config.sums, "peers", 2)):
        yield (
            f"sums.bits={getattr(config.sums, 'bits', None)} and privacy=client",
            "how many bits an entry takes follows from the noise",
            "Leave it out",
        )
