"""Private runs: what they release, how much noise that takes, and which settings would break them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from trillium.errors import UserError
from trillium.federation.guard import Guard
from trillium.federation.setting import Setting
from trillium.federation.side import Side
from trillium.federation.sums import Whole
from trillium.privacy import Guarantee
from trillium.privacy.account import Account, Release, epsilon, noise_for
from trillium.privacy.bands import Bands
from trillium.privacy.client import ClientLevel
from trillium.privacy.example import ExampleLevel, NoisySteps

EVEN: Final = ("cast", "hadamard", "int2", "int4", "int8", "random_k", "sign")
"""Codecs that write as many bytes for any values."""


def population_of(config: Setting) -> int:
    """Return how many units there are to draw from."""
    privacy = config.privacy
    if isinstance(privacy, ClientLevel):
        return privacy.population or config.data.num_clients
    assert isinstance(privacy, ExampleLevel)
    assert privacy.population is not None, "the check of the settings has not run"
    return privacy.population


def fewest_of(config: Setting) -> int | None:
    """Return how many clients share the noise of a sum, at least, if they add it themselves."""
    shares = config.sums.hides and isinstance(config.privacy, ClientLevel)
    return config.fleet.min_replies if shares else None


def whole_of(config: Setting) -> Whole | None:
    """Return what the head asks for, once."""
    found = getattr(config.head, "whole", None)
    assert found is None or isinstance(found, Whole)
    return found


def round_of(config: Setting) -> Release:
    """Return what a round releases, with its noise as the unit.

    On examples it is all the steps of a client; one that is not asked releases nothing, and is counted
    as if it were.
    """
    shared = fewest_of(config) is not None
    population = config.data.num_clients if shared else population_of(config)
    if isinstance(config.privacy, ClientLevel):
        if shared or config.fleet.sampling == "cyclic":
            return Release(1.0, discrete=shared, every=config.fleet.period(population))
        return Release(1.0, (config.fleet.clients_per_round or population) / population)
    training = config.training
    return Release(1.0, training.batch_size / population, training.num_steps(population))


def releases_of(config: Setting) -> list[Release]:
    """Return what a run releases, with the noise of a round as the unit: its rounds, and the head."""
    each, whole = round_of(config), whole_of(config)
    head = [] if whole is None else [Release(whole.noise, discrete=each.discrete)]
    return [each.over(config.rounds), *head]


def bands_of(config: Setting) -> Bands:
    """Return how the noise of rounds is mixed: where clients come in turns, and changes add up."""
    mixes = getattr(config.framework, "accumulates", False) and fewest_of(config) is None
    return Bands(round_of(config).every if mixes else 1)


def noise_of(config: Setting) -> float:
    """Return the noise of a round over its bound.

    Raises:
        UserError: none is enough, or what counts it is not installed.
    """
    privacy = config.privacy
    assert isinstance(privacy, Guarantee)
    if privacy.noise is not None:
        return privacy.noise
    assert privacy.epsilon is not None
    return noise_for(privacy.epsilon, releases_of(config), privacy.delta)


def foreseen(config: Setting, width: int) -> dict[str, Any]:
    """Return what a run would guarantee, and how the noise compares with what it hides.

    Above 2, the noise of a round is so much larger than what its clients can add that hardly anything
    comes of it. On examples each client has noise of its own, of which a mean leaves 1/√n.

    Args:
        width: entries of what is added up.
    """
    privacy = config.privacy
    if not isinstance(privacy, Guarantee):
        return {}
    noise, releases = noise_of(config), releases_of(config)
    scaled = [replace(release, noise=release.noise * noise) for release in releases]
    spent = epsilon(scaled, privacy.delta)
    each, cohort = round_of(config), config.fleet.clients_per_round or config.data.num_clients
    if (fewest := fewest_of(config)) is not None:
        units = math.sqrt(cohort * fewest)
    else:
        units = each.rate * population_of(config) / each.every / bands_of(config).norm
        units *= math.sqrt(cohort) if isinstance(privacy, ExampleLevel) else 1
    return {
        "epsilon": spent if math.isfinite(spent) else None,
        "delta": privacy.delta,
        "unit": privacy.unit,
        "noise_over_clip": noise,
        "noise_over_sum": noise * math.sqrt(width) / units,
    }


def guard_of(
    config: Setting, server: Side, account: Account, *, deployed: bool = False
) -> Guard | None:
    """Return the server's half of the guarantee of a run, if it has one.

    Args:
        deployed: whether the clients are nodes on machines of their own.

    Raises:
        UserError: it cannot be kept.
    """
    privacy = config.privacy
    if not isinstance(privacy, Guarantee):
        return None
    fewest, release = fewest_of(config), replace(round_of(config), noise=noise_of(config))
    if fewest is not None:
        return Guard(privacy, server, account, release, config.data.num_clients, fewest=fewest)
    if deployed and isinstance(privacy, ClientLevel) and privacy.population is None:
        raise UserError(
            "privacy=client without a population",
            "nodes come and go, and what is added up is divided by a number that stays",
            "Write how many clients there are, such as privacy.population=100",
        )
    return Guard(privacy, server, account, release, population_of(config), bands=bands_of(config))


def steps_of(config: Setting, client: Side) -> NoisySteps | None:
    """Return how a client takes steps that hide its examples, if they are to be hidden.

    Raises:
        UserError: as `noise_of`.
    """
    privacy = config.privacy
    if not isinstance(privacy, ExampleLevel):
        return None
    rate, size = round_of(config).rate, config.training.batch_size
    return NoisySteps(privacy.clip, noise_of(config), rate, size, client.secret)


def check_private(name: str, units: frozenset[str], config: Setting) -> None:
    """Refuse what would break a guarantee, whatever the framework.

    Args:
        units: which it can hide.

    Raises:
        UserError: something would leave that the guarantee does not cover.
    """
    for given, why, instead in _breaks(name, units, config):
        raise UserError(f"{given} with privacy={config.privacy.name}", why, instead)


def _breaks(name: str, units: frozenset[str], config: Setting) -> Iterator[tuple[str, str, str]]:
    privacy = config.privacy
    if privacy.unit not in units:
        able = "fedllm, fedkseed or kd" if privacy.unit == "client" else "fedllm"
        yield (
            f"framework={name}",
            "what its clients send is not a sum to which each of them adds something bounded",
            f"Write framework={able}, or privacy=none",
        )
    if getattr(config.head, "runs_model", False) and whole_of(config) is None:
        yield (
            f"head={config.head.name}",
            "its statistics and losses are those of a client's own data, without noise",
            "Write head=class_sums, or head=random",
        )
    if config.training.max_length is None:
        yield (
            "training.max_length left out",
            "it would be taken from the clients' texts, and so tell of the longest",
            "Write training.max_length=128, or what you know without looking",
        )
    for where, wire in config.wires().items():
        for codec in wire.up:
            if codec.name not in EVEN:
                yield (
                    f"{where}.up: {codec.name}",
                    "how many bytes it writes depends on the values, and who sees the line sees that",
                    f"Write one of {', '.join(EVEN)}, or none",
                )
    for label, tier in config.tiers.items():
        if tier.rank is not None or tier.layers is not None:
            yield (
                f"tiers.{label} with rank or layers",
                "its clients would add to a part of the sum, and that part tells that they are there",
                "Leave rank and layers out",
            )
    if isinstance(privacy, ExampleLevel):
        yield from _breaks_of_examples(privacy, config)
    if isinstance(privacy, ClientLevel):
        size = config.fleet.clients_per_round
        if size is not None and size > population_of(config):
            yield (
                f"fleet.clients_per_round={size} of a population of {population_of(config)}",
                "more cannot be drawn on average than there are",
                f"Write at most {population_of(config)}, or privacy.population={size}",
            )


def _breaks_of_examples(privacy: ExampleLevel, config: Setting) -> Iterator[tuple[str, str, str]]:
    training = config.training
    if privacy.population is None:
        yield (
            "privacy.population left out",
            "how likely an example is in a batch must follow from a number that everybody may know",
            "Write about how many examples a client has, such as privacy.population=500",
        )
    elif privacy.population < training.batch_size:
        yield (
            f"training.batch_size={training.batch_size} of a population of {privacy.population}",
            "more cannot be drawn on average than there are",
            f"Write at most {privacy.population}",
        )
    if training.local_steps is None:
        yield (
            f"training.local_epochs={training.local_epochs}",
            "how many steps there are would follow from how many examples a client has",
            "Write training.local_steps",
        )
    if any(tier.local_steps is not None for tier in config.tiers.values()):
        yield (
            "tiers with local_steps",
            "what is spent is counted for all clients alike",
            "Leave it out there, and write training.local_steps",
        )
    if getattr(config.task, "logit_adjustment", 0.0):
        yield (
            "task.logit_adjustment",
            "the loss of each example would depend on the labels of all others",
            "Leave it out",
        )
