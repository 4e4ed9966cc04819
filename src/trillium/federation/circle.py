"""Who shares secrets with whom in a masked sum, and what comes of these secrets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trillium.federation.failed import RoundFailed
from trillium.privacy.phases import Context
from trillium.privacy.shamir import join
from trillium.privacy.streams import Lanes, agreed, derived, mask, public_of


@dataclass(frozen=True)
class Circle:
    """The peers of every client in one sum.

    Attributes:
        peers: by client, who has shares of its secrets, itself among them. It has shares of theirs.
        threshold: how many shares bring a secret back.
    """

    peers: Mapping[str, Sequence[str]]
    threshold: int

    @classmethod
    def drawn(cls, names: Sequence[str], most: int, need: int, order: Sequence[int]) -> Circle:
        """Return one in which everybody has so many peers at most: all, or those near it in an order.

        Where all are peers, as many shares are needed as clients are to stay. Else it is halfway
        between half of the peers and the part of them that is to stay: of one client's peers more may
        be lost than of all clients.

        Args:
            names: sorted.
            need: how many clients are to stay, more than half of them.
        """
        count = len(names)
        if count <= most + 1:
            return cls(dict.fromkeys(names, names), need)
        steps = range(-(most // 2), most // 2 + 1)
        peers = {
            names[place]: sorted(names[order[(at + step) % count]] for step in steps)
            for at, place in enumerate(order)
        }
        return cls(peers, int(len(steps) * (need / count + 0.5) / 2) + 1)

    def secret(self, owner: str, parts: Mapping[str, bytes], number: int) -> bytes:
        """Return the secret of a client, of shares by holder, in a round.

        Raises:
            RoundFailed: they are too few.
        """
        if len(parts) < self.threshold:
            raise RoundFailed(
                f"round {number}: {len(parts)} clients have given a share of a secret of {owner}, and "
                f"it takes {self.threshold}"
            )
        places = {self.peers[owner].index(holder): part for holder, part in parts.items()}
        return join(dict(list(places.items())[: self.threshold]))

    def unmask(
        self,
        total: Lanes,
        secrets: Mapping[str, bytes],
        publics: Mapping[str, bytes],
        answered: Collection[str],
        context: Context,
    ) -> None:
        """Take off a sum what hides it.

        Args:
            secrets: of those that have answered their seed, of the others their private key.
            publics: the public keys of all.

        Raises:
            RoundFailed: a private key is not that of the public one.
        """
        for name in answered:
            mask(total, derived(secrets[name], context.own(name)), off=True)
        for name in secrets.keys() - set(answered):
            if public_of(secrets[name]) != publics[name]:
                raise RoundFailed(
                    f"round {context.round}: the shares of the secret of {name} do not fit"
                )
            for peer in set(self.peers[name]) & set(answered):
                key = agreed(secrets[name], publics[peer], context.pair(name, peer))
                mask(total, key, off=peer < name)
