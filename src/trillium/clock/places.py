"""Devices and links: where a federation may run, and how fast these are."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from trillium.errors import UserError

_PREFIXES: Final = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_BINARY: Final = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_UNITS: Final = r"(?:bit/s|bits|bit|bps|flop/s|flops|flop|b|s|w)?"
_QUANTITY: Final = re.compile(
    rf"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgtp]?i?)({_UNITS})", re.IGNORECASE
)


def quantity(value: Any) -> Any:
    """Return a number with an optional prefix and unit as a number: `4GB`, `10 Mbit`, `2e12`.

    Prefixes are decimal, but for `KiB`, `MiB`, `GiB` and `TiB`.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str):
        return value
    found = _QUANTITY.fullmatch(value.strip())
    prefix = found.group(2).lower() if found else ""
    if found is None or prefix not in _PREFIXES | _BINARY:
        raise UserError(
            repr(value),
            "it is not a quantity",
            "Write a number with its unit: 4GB, 10Mbit, 2TFLOPS",
        )
    return float(found.group(1)) * (_PREFIXES | _BINARY)[prefix]


_FORM: Final = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
Quantity = Annotated[float, BeforeValidator(quantity), Field(gt=0), WithJsonSchema(_FORM)]


class Device(BaseModel):
    """What computes.

    Attributes:
        flops: operations per second that it reaches in training; unknown by default.
        memory: bytes; unknown by default.
        watts: while it computes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops: Quantity | None = None
    memory: Quantity | None = None
    watts: Quantity | None = None


class PaperLink(BaseModel):
    """The network of one side.

    Attributes:
        up, down: bits per second; unknown by default.
        latency: seconds that a message takes on its way beside its length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    up: Quantity | None = None
    down: Quantity | None = None
    latency: float = Field(default=0.0, ge=0)


class Place(BaseModel):
    """A device and its link.

    Attributes:
        device, link: see their classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = Device()
    link: PaperLink = PaperLink()


class Places(BaseModel):
    """Where the sides of a federation run.

    Attributes:
        client: where clients run.
        server: where the server runs; through its link goes one message after the other.
        tiers: where the clients of a tier run, by its label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: Place = Place()
    server: Place = Place()
    tiers: dict[str, Place] = {}

    def of(self, tier: str, up: float | None, down: float | None) -> Place:
        """Return where the clients of a tier run.

        Args:
            up, down: bits per second of the link that the run knows, which count where none is given.
        """
        found = self.tiers.get(tier, self.client)
        link = PaperLink(
            up=found.link.up or up, down=found.link.down or down, latency=found.link.latency
        )
        return found.model_copy(update={"link": link})
