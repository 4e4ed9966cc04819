"""Certificates and keys of a federation as files. A private key is made where it is used, and stays.

    AUTHORITY/  ca.crt  ca.key (encrypted)      on a machine that is kept offline
    KEYS/       ca.crt  server.crt  server.key  at the server
                revoked.txt                     keys that are good no more
                nodes/<name>/client.crt  node_key.pub
    KEYS/       ca.crt  client.crt  client.key  node_key  node_key.pub    at a node

`client.*` is the node in a session, its name the common name; `node_key` is the node for Flower's node
authentication, ECDSA P-384 in OpenSSH format, as `ssh-keygen -t ecdsa -b 384` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from trillium.deploy.certificates import (
    Key,
    Request,
    alternatives,
    issue,
    new_authority,
    new_key,
    read_authority,
    read_request,
    write_request,
)
from trillium.deploy.names import check_node
from trillium.engines.revoked import Revoked, digest_of
from trillium.errors import UserError
from trillium.files import write_atomic

REVOKED: Final = "revoked.txt"


def make_authority(folder: Path, passphrase: bytes | None) -> list[Path]:
    """Make the authority's certificate and key, encrypted if there is a passphrase."""
    certificate, key = new_authority()
    _make_folder(folder)
    secret = _pem(key, passphrase)
    return _write_new({folder / "ca.key": secret, folder / "ca.crt": _crt(certificate)})


def ask_for_server(folder: Path, hosts: Sequence[str]) -> list[Path]:
    """Make the server's key, unless there is one, and a request for its hosts."""
    alternatives(hosts)
    _make_folder(folder)
    path, made = folder / "server.key", []
    if not path.exists():
        made = _write_new({path: _pem(new_key())})
    request = folder / "server.request"
    write_atomic(request, write_request(_read_key(path), hosts[0][:64], hosts))
    return [*made, request]


def ask_for_node(folder: Path, name: str) -> list[Path]:
    """Make a node's keys, unless it has them, and a request; with keys it is one for a renewal."""
    check_node(name)
    _make_folder(folder)
    private, node_key = folder / "client.key", folder / "node_key"
    made = []
    if not _exist(folder, "client.key", "node_key", "node_key.pub"):
        flower = ec.generate_private_key(ec.SECP384R1())
        secret = flower.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = flower.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        line = public + b" " + name.encode() + b"\n"
        made = _write_new(
            {private: _pem(new_key()), node_key: secret, node_key.with_suffix(".pub"): line}
        )
    request = folder / f"{name}.request"
    line = node_key.with_suffix(".pub").read_bytes()
    write_atomic(request, write_request(_read_key(private), name, node_key=line))
    return [*made, request]


def sign(
    authority: Path, passphrase: bytes | None, path: Path, out: Path, *, days: int, server: bool
) -> tuple[Request, x509.Certificate, list[Path]]:
    """Sign a request, and write what it asks for where the server keeps its files.

    Raises:
        UserError: it is not what it is said to be, or another key has the name.
    """
    request = read_request(path)
    if bool(request.hosts) != server:
        what = "names hosts, as a server's does" if request.hosts else "is that of a node"
        instead = "Give --server if it is your own server's" if not server else "Leave --server out"
        raise UserError(str(path), f"this request {what}", instead)
    if not server and not request.node_key:
        raise UserError(str(path), "it lacks the node's key for Flower", "Ask for the whole file")
    found = read_authority(authority, passphrase)
    revoked = Revoked(out / REVOKED)
    revoked.changed()
    if digest_of(request.key) in revoked.digests:
        why = f"its key was revoked, as {out / REVOKED} says"
        raise UserError(str(path), why, "Let the node make new keys, in a new folder")
    target = out / ("server.crt" if server else f"nodes/{request.name}/client.crt")
    held = read_certificate(target) if target.exists() and not server else None
    if held is not None and held.public_key() != request.key and not revoked.has(held):
        raise UserError(
            str(path),
            f"{target} is of another key: two would go by the name of {request.name}",
            f"Revoke that one first: trillium keys revoke {out} {request.name}",
        )
    certificate = issue(found, request, days)
    return request, certificate, _write(found[0], out, request, certificate)


def revoke(folder: Path, name: str) -> str:
    """Say that the key of a node is good no more; a server that runs sees it within a second.

    Returns:
        What the key is known by.
    """
    path = folder / "nodes" / name / "client.crt"
    if not path.exists():
        raise UserError(
            f"node {name!r}",
            f"there is no {path}: no certificate was signed for it here",
            "Name a node as its folder in nodes/ is called",
        )
    digest = digest_of(read_certificate(path).public_key())
    listed = folder / REVOKED
    before = listed.read_text(encoding="utf-8") if listed.exists() else ""
    write_atomic(listed, f"{before}{digest} {name} {datetime.now(UTC).date().isoformat()}\n")
    return digest


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate.

    Raises:
        UserError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"it cannot be read ({error})", "Name a .crt file") from error


def make_keys(folder: Path, hosts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Make what is missing of a federation on one machine, for `trillium up` and tests.

    Returns:
        The files.
    """
    for name in names:
        check_node(name)
    if not (folder / "server.crt").exists():
        alternatives(hosts)
    made = [] if _exist(folder, "ca.crt", "ca.key") else make_authority(folder, None)
    authority = read_authority(folder)
    for name in ("", *names):
        place = folder / "nodes" / name if name else folder
        if (place / ("client.crt" if name else "server.crt")).exists():
            continue
        *keys, path = ask_for_node(place, name) if name else ask_for_server(folder, hosts)
        request = read_request(path)
        made += [*keys, *_write(authority[0], folder, request, issue(authority, request))]
        path.unlink()
    return sorted({*made})


def _write(
    issuer: x509.Certificate, out: Path, request: Request, certificate: x509.Certificate
) -> list[Path]:
    """Write what a request has got where the server keeps its files."""
    place = out if request.hosts else out / "nodes" / request.name
    if (out / "ca.crt").exists() and read_certificate(out / "ca.crt") != issuer:
        raise UserError(
            str(out), "its ca.crt is of another authority", "Name another folder, or that authority"
        )
    _make_folder(place)
    name = "server.crt" if request.hosts else "client.crt"
    made = {out / "ca.crt": _crt(issuer), place / name: _crt(certificate)}
    if request.node_key:
        made[place / "node_key.pub"] = request.node_key
    for path, content in made.items():
        write_atomic(path, content)
    return list(made)


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _read_key(path: Path) -> Key:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, Key)
    return key


def _pem(key: Key, passphrase: bytes | None = None) -> bytes:
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def _crt(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _exist(folder: Path, *names: str) -> bool:
    """Return whether the files are there; half of them is an error, since none is overwritten."""
    found = [name for name in names if (folder / name).exists()]
    if found and len(found) < len(names):
        missing = sorted(set(names) - set(found))
        raise UserError(
            str(folder),
            f"it holds {', '.join(found)} but lacks {', '.join(missing)}",
            f"Restore what is missing, or remove {', '.join(found)} to have all of them made anew",
        )
    return bool(found)


def _write_new(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files that must not be there; keys are for their owner alone."""
    for path in files:
        if path.exists():
            raise UserError(
                str(path), "keys are never overwritten", "Remove it first, or name another folder"
            )
    for path, content in files.items():
        write_atomic(path, content, private=path.suffix not in (".crt", ".pub"))
    return list(files)
