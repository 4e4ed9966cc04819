"""Whether the server sees what each client adds to a sum, or the sum alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from pydantic import Field

from trillium.component import Component

WIDE: Final = 48  # bits of an entry of one client while nothing is known of how large entries are
FEWEST: Final = 3  # clients of a sum


class Sums(Component, kind="sums", package="trillium.privacy.sums"):
    """How clients add up what they send.

    Class variables:
        hides: whether the server sees sums alone.
    """

    hides: ClassVar[bool] = False


class Plain(Sums, name="plain"):
    """The server sees what each client sends, and adds it up."""


class Masked(Sums, name="masked"):
    """A semi-honest server sees the sum of at least `fleet.min_replies` clients, and nothing of one.

    Bonawitz et al. (2017, ACM CCS, eprint 2017/281), with a graph of peers as in Bell et al. (2020, ACM
    CCS, eprint 2020/704). It costs two more asks in each round.

    Attributes:
        bits: of an entry of one client; the sum of n clients takes about log2(n) more. The first sum
            takes 48 and more, while nobody knows how large entries are.
        peers: of a client at most: it shares secrets with these, and with all others where there are no
            more. More of them stand more clients that are lost, or that collude, and cost time.
    """

    bits: int = Field(default=8, ge=4, le=WIDE)
    peers: int = Field(default=48, ge=2, le=254)

    hides: ClassVar[bool] = True


@dataclass(frozen=True)
class Shares:
    """How much noise each client adds.

    Attributes:
        noise: standard deviation over the bound, of the sum of the fewest.
        fewest: clients that are in a sum, or it is not revealed.
    """

    noise: float
    fewest: int
