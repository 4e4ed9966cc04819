"""`trillium keys`: certificates and keys of a federation, each key made where it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trillium.cli.deploy import check_installed
from trillium.errors import UserError

PASSPHRASE = "TRILLIUM_AUTHORITY_PASSPHRASE"  # in the environment, for scripts
Keys = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of certificates and keys.")]

app = typer.Typer(
    help="Make, sign, look at, renew and revoke the keys of a federation.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def authority(folder: Keys) -> None:
    """Make the authority, its key encrypted with a passphrase. Keep it on a machine that is offline."""
    check_installed()
    from trillium.deploy.keys import make_authority

    _show(make_authority(folder, _passphrase(new=True)))
    print("Keep this folder offline. It is needed to sign requests, and for nothing else.")


@app.command()
def server(
    folder: Keys,
    host: Annotated[
        list[str], typer.Option("--host", help="Name or address by which nodes reach the server.")
    ],
) -> None:
    """Make the server's key, and a request for its certificate."""
    check_installed()
    from trillium.deploy.certificates import read_request
    from trillium.deploy.keys import ask_for_server

    made = ask_for_server(folder, host)
    _show(made)
    print(f"Fingerprint: {read_request(made[-1]).fingerprint}")


@app.command()
def node(
    folder: Keys,
    name: Annotated[str, typer.Option("--name", help="Name of the node.")],
) -> None:
    """Make a node's keys, at the node, and a request for its certificate; again, to renew that."""
    check_installed()
    from trillium.deploy.certificates import read_request
    from trillium.deploy.keys import ask_for_node

    made = ask_for_node(folder, name)
    _show(made)
    print(f"Fingerprint: {read_request(made[-1]).fingerprint}")
    print(
        f"Send {made[-1]} to the operator, and tell the fingerprint on another channel. The other"
    )
    print("files are yours alone.")


@app.command()
def sign(
    request: Annotated[Path, typer.Argument(help="What `keys node` or `keys server` wrote.")],
    by: Annotated[Path, typer.Option("--authority", help="Folder of the authority.")],
    out: Annotated[Path, typer.Option("--out", help="The server's folder of keys.")] = Path("keys"),
    days: Annotated[int, typer.Option(min=1, max=825, help="How long it is good.")] = 397,
    is_server: Annotated[
        bool, typer.Option("--server", help="Whether it is the server's own request.")
    ] = False,
) -> None:
    """Sign a request; compare the fingerprint with what its sender tells you before you use it."""
    check_installed()
    from trillium.deploy.certificates import read_request
    from trillium.deploy.keys import sign as sign_request

    read_request(request)  # before somebody types a passphrase
    if not by.is_dir():
        raise UserError(
            f"--authority {by}", "there is no such folder", "Name the one of `keys authority`"
        )
    found, certificate, made = sign_request(
        by, _passphrase(new=False), request, out, days=days, server=is_server
    )
    _show(made)
    print(f"Fingerprint: {found.fingerprint}")
    end = certificate.not_valid_after_utc.date()
    print(f"{', '.join(found.hosts) or found.name}: good until {end.isoformat()}")
    if not is_server:
        print(f"Send ca.crt and client.crt to {found.name}; neither is secret.")


@app.command("show")
def show_certificates(folder: Keys) -> None:
    """Show whose certificates there are, and how long each is good."""
    check_installed()
    from trillium.deploy.keys import REVOKED, read_certificate
    from trillium.engines.revoked import WARN_DAYS, Revoked, days_left

    paths = sorted(folder.rglob("*.crt")) if folder.is_dir() else [folder]
    if not paths:
        raise UserError(str(folder), "there is no certificate in it", "Name a folder of keys")
    revoked = Revoked(folder / REVOKED if folder.is_dir() else None)
    revoked.changed()
    for path in paths:
        certificate = read_certificate(path)
        left, end = days_left(certificate), certificate.not_valid_after_utc.date().isoformat()
        state = "renew it" if left < WARN_DAYS else "good"
        state = "it has ended" if left < 0 else state
        state = "revoked" if revoked.has(certificate) else state
        name = certificate.subject.rfc4514_string().removeprefix("CN=")
        print(f"{path}: {name}, until {end}, {max(left, 0):.0f} days left: {state}")


@app.command()
def revoke(
    folder: Keys,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the node.")],
) -> None:
    """Say that a node's key is good no more: its session ends at once, and it is not let in again."""
    check_installed()
    from trillium.deploy.keys import REVOKED
    from trillium.deploy.keys import revoke as revoke_key

    print(f"{folder / REVOKED}: {revoke_key(folder, name)} {name}")
    print(
        "Tell Flower, too: flwr supernode list trillium, then flwr supernode unregister ID trillium"
    )


@app.command()
def recipe(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `trillium deploy` has written.")
    ],
    key: Annotated[Path, typer.Option(help="An Ed25519 key, as `ssh-keygen -t ed25519` makes it.")],
) -> None:
    """Sign the recipe of a deployment, for nodes whose policy asks who has looked at it."""
    check_installed()
    from trillium.deploy.signed import sign_recipe

    print(sign_recipe(folder, key, os.environ.get("TRILLIUM_SIGNER_PASSPHRASE")))


def _show(made: list[Path]) -> None:
    for path in made:
        print(path)


def _passphrase(*, new: bool) -> bytes:
    given = os.environ.get(PASSPHRASE)
    if given is None:
        given = typer.prompt(
            "Passphrase of the authority", hide_input=True, confirmation_prompt=new
        )
    if len(given) < 8:
        raise UserError(
            "the passphrase", "it has fewer than 8 characters", "Choose a longer one, and keep it"
        )
    return str(given).encode()
