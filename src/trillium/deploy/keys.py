"""Certificates and keys of a federation: one authority, the server, and each node.

    folder/ca.crt  ca.key           the authority; ca.key stays with the operator
           server.crt  server.key   the server, with its host names and addresses
           nodes/<name>/client.crt  client.key     the node in a session, common name = its name
                        node_key  node_key.pub     the node for Flower's node authentication

Certificates are ECDSA P-256. Node keys are ECDSA P-384 in OpenSSH format, as
`ssh-keygen -t ecdsa -b 384` makes them. A node gets `ca.crt` and its own folder, and nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trillium.deploy.names import check_host, check_node
from trillium.errors import UserError

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
CLOCK_SKEW: Final = timedelta(days=1)  # a node's clock may be behind the operator's
Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def make_keys(folder: Path, hosts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Make what is missing in a folder of certificates and keys, and return these files.

    What is there stays as it is, and must be whole. The hosts, DNS names and IP addresses under
    which nodes reach the server, may be left out once there is a server certificate.
    """
    for name in names:
        check_node(name)
    has_server = _exist(folder, "server.crt", "server.key")
    if has_server:
        _check_hosts(folder / "server.crt", hosts)
    else:
        _alternatives(hosts)
    made: list[Path] = []
    if not _exist(folder, "ca.crt", "ca.key"):
        made += make_authority(folder)
    if not has_server:
        made += make_server(folder, hosts)
    for name in dict.fromkeys(names):
        files = ("client.crt", "client.key", "node_key", "node_key.pub")
        if not _exist(folder / "nodes" / name, *files):
            made += make_node(folder, name)
    return made


def make_authority(folder: Path) -> list[Path]:
    """Make the authority's certificate and key, and the folder, if none was there; return the files."""
    orphans = [name for name in ("server.crt", "nodes") if (folder / name).exists()]
    if orphans and not (folder / "ca.crt").exists():
        raise UserError(
            str(folder),
            f"its {' and '.join(orphans)} come from an authority that is missing",
            "Restore ca.crt and ca.key, or name an empty folder to make everything anew",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Trillium federation authority")])
    builder = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _write_pair(folder / "ca", builder.sign(key, hashes.SHA256()), key)


def make_server(folder: Path, hosts: Sequence[str]) -> list[Path]:
    """Make the server's certificate and key; return the files. None is replaced."""
    extensions = [x509.SubjectAlternativeName(_alternatives(hosts))]
    # A common name holds 64 characters; the alternative names are what is checked.
    authority, name = _authority(folder), hosts[0][:64]
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    return _issue(authority, folder / "server", name, purpose, extensions)


def make_node(folder: Path, name: str) -> list[Path]:
    """Make a node's client certificate, its name the common name, and its key pair for Flower."""
    check_node(name)
    authority, place = _authority(folder), folder / "nodes" / name
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = _issue(authority, place / "client", name, ExtendedKeyUsageOID.CLIENT_AUTH)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(place / "node_key", private, secret=True)
    _write(place / "node_key.pub", public + b" " + name.encode() + b"\n", secret=False)
    return [*made, place / "node_key", place / "node_key.pub"]


def _issue(
    authority: Authority,
    stem: Path,
    common_name: str,
    purpose: ObjectIdentifier,
    extensions: Sequence[x509.ExtensionType] = (),
) -> list[Path]:
    issuer, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, issuer.subject, key.public_key(), CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return _write_pair(stem, builder.sign(signer, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(folder: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not of an elliptic curve")
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not that of the certificate")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            str(folder),
            f"its ca.crt and ca.key cannot be used ({error})",
            "Name a folder that `trillium keys` made, or an empty one",
        ) from error
    return certificate, key


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise UserError(
            "no host",
            "the server's certificate must hold the names or addresses that nodes connect to",
            "Name at least one, such as fl.example.org or 192.0.2.7",
        )
    return [_alternative(host) for host in hosts]


def _alternative(host: str) -> x509.GeneralName:
    found = check_host(host)
    return x509.DNSName(found) if isinstance(found, str) else x509.IPAddress(found)


def _check_hosts(path: Path, hosts: Sequence[str]) -> None:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    missing = [host for host in hosts if _alternative(host) not in held]
    if missing:
        raise UserError(
            ", ".join(missing),
            f"{path} was made for {', '.join(str(host.value) for host in held)} only",
            "Remove server.crt and server.key to have them made for all hosts; nodes keep theirs",
        )


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


def _write_pair(
    stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.crt"), stem.with_name(f"{stem.name}.key")]
    for path in paths:
        _check_absent(path)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write(paths[1], private, secret=True)
    _write(paths[0], certificate.public_bytes(Encoding.PEM), secret=False)
    return paths


def _write(path: Path, content: bytes, *, secret: bool) -> None:
    """Write a new file at once: it is there whole or not at all, and never replaces another."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not secret:
            Path(temporary).chmod(0o644)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            _check_absent(path)
            raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def _check_absent(path: Path) -> None:
    if path.exists():
        raise UserError(
            str(path), "keys are never overwritten", "Remove it first, or name another folder"
        )
