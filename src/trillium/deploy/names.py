"""Names of nodes and hosts, as they stand in certificates."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from trillium.errors import UserError
from trillium.files import CLIENT_NAME, CLIENT_NAME_RULE

_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?{_LABEL}(\.{_LABEL})*")


def check_node(name: str) -> None:
    """Check that a node can be called so."""
    if not CLIENT_NAME.fullmatch(name):
        raise UserError(
            f"node {name!r}",
            "a node's name is a file name and stands in its certificate",
            CLIENT_NAME_RULE,
        )


def check_host(host: str) -> str | IPv4Address | IPv6Address:
    """Return a DNS name as it is, and an IP address as one; anything else is refused."""
    with suppress(ValueError):
        return ip_address(host)
    if _HOST.fullmatch(host):
        return host
    raise UserError(
        f"host {host!r}",
        "it is neither a DNS name nor an IP address",
        "Write fl.example.org or 192.0.2.7, without scheme and port",
    )
