"""The server's half of a guarantee: it draws cohorts, adds up, releases, and keeps account."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from trillium.federation.side import Side
from trillium.federation.sums import Form, Noisy
from trillium.privacy import Guarantee
from trillium.privacy.account import Account, Release
from trillium.privacy.bands import Bands
from trillium.privacy.client import BELOW, BoundedSum, ClientLevel
from trillium.privacy.noise import chance
from trillium.privacy.sums import Shares
from trillium.wire.addend import Addend
from trillium.wire.message import Message, scalar

ALONE: Final = (
    "whoever sees every round's sum, a semi-honest server too, if no client helps it; that a client "
    "takes part is not hidden"
)
Ask = Callable[
    [Mapping[str, Message], Callable[[Message], tuple[Addend, float | None]]],
    Iterator[tuple[str, tuple[Addend, float | None]]],
]


@dataclass
class Guard:
    """What stands between the clients of a private run and all that is made of their answers.

    Attributes:
        side: of the server, which has the secret, and keeps the bound.
        account: of what is released.
        release: what one round releases, or in training on examples all its steps.
        population: how many units there are to draw from.
        told: of the last round, for its line of measures.
        width: entries of the last sum of a round.
        fewest: clients of a sum, where each adds its share of the noise; none where the server does.
        bands: how the noise of rounds is mixed.
    """

    privacy: Guarantee
    side: Side
    account: Account
    release: Release
    population: int
    told: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    fewest: int | None = None
    bands: Bands = field(default_factory=lambda: Bands(1))

    @property
    def adds(self) -> bool:
        """Whether it draws cohorts, adds up, and adds the noise."""
        return isinstance(self.privacy, ClientLevel) and self.fewest is None

    @property
    def clients(self) -> int | None:
        """How many clients there are to draw from, if it is those that are hidden."""
        return self.population if isinstance(self.privacy, ClientLevel) else None

    def cohort(self, names: Iterable[str]) -> list[str]:
        """Return the clients of a round: each is in it by a coin of its own, and of the server's.

        A round that is run again after a release is another one, and so is its cohort.
        """
        key = self.side.secret(f"cohort {len(self.account.lines)}")
        return [name for name in names if chance(key, name) < self.release.rate]

    def announce(self, form: Form) -> Release:
        """Write down what is about to be released."""
        release, what = self.release, "round"
        if form.whole is not None:
            noise = self.release.noise * form.whole.noise
            release, what = replace(self.release, noise=noise, rate=1.0, count=1, every=1), "head"
        else:
            self.width = sum(tensor.numel() for tensor in form.tensors.values())
        self.account.note(self.side.round, what, release)
        return release

    def shared(self, release: Release, form: Form) -> Noisy | None:
        """Return the noise that clients add to a release themselves, if they do."""
        if self.fewest is None:
            return None
        assert isinstance(self.privacy, ClientLevel)
        if form.whole is None:
            self.told = {"clip": self.privacy.clip.first}
        bound = self.privacy.clip.first if form.whole is None else form.whole.bound
        return Noisy(bound, Shares(release.noise, self.fewest))

    def total(self, requests: Mapping[str, Message], form: Form, ask: Ask) -> Addend:
        """Return what stands in the place of all clients: the mean of a round, with noise.

        It is divided by how many are expected. Who does not answer adds nothing.
        """
        assert isinstance(self.privacy, ClientLevel)
        clip, store = self.privacy.clip, self.side.store
        bound, noise, count_noise = store.setdefault("clip", clip.first), self.release.noise, 0.0
        size = self.release.rate * self.population / self.release.every
        if form.whole is not None:
            bound, size = form.whole.bound, float(self.population)
            noise *= form.whole.noise
        elif clip.learns:
            noise, count_noise = clip.split(noise, size)
        if mixes := form.whole is None and self.bands.count > 1:
            noise, count_noise = noise * self.bands.norm, count_noise * self.bands.norm
        total = BoundedSum(form.tensors, bound, noise, count_noise)
        learns = clip.learns and form.whole is None

        def read(reply: Message) -> tuple[Addend, float | None]:
            below = reply.scalar(BELOW) if clip.learns else None
            return form.closed(reply), float(below == 1.0) if learns else None

        asks, made = {}, dict[int, Message]()
        for client, message in requests.items():
            bounded = {**message.tensors, "control/clip": scalar(bound)}
            made.setdefault(id(message), replace(message, tensors=bounded))
            asks[client] = made[id(message)]
        for _, (addend, below) in ask(asks, read):
            total.add(addend.tensors, below)
        self.announce(form)
        key, mixed = self.side.secret("release"), store.setdefault("bands", {}) if mixes else {}
        estimate = partial(self.bands.release, number=self.side.round, store=mixed, key=key)
        tensors, count = total.release(key, estimate if mixes else None)
        if form.whole is None:
            self.told = {"clip": bound}
            if learns and count_noise:
                share = count / size + 0.5
                self.told["below_clip"] = share
                store["clip"] = clip.following(bound, share)
        return Addend({name: tensor / size for name, tensor in tensors.items()})

    def measures(self) -> dict[str, Any]:
        """Return what is said of the guarantee after a round."""
        spent = self.account.spent(self.privacy.delta)
        return {
            "epsilon": spent if math.isfinite(spent) else None,
            "delta": self.privacy.delta,
            "unit": self.privacy.unit,
            "adversary": self.privacy.adversary if self.fewest is None else ALONE,
            "not_counted": self.privacy.uncounted,
            "noise_over_clip": self.release.noise,
            **self.told,
        }
