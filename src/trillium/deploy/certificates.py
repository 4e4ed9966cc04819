"""Certificates of a federation: who asks for one, who signs it, and how long it is good.

The authority signs what the server and the nodes ask for: the private keys stay where they were made.
Certificates are ECDSA P-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trillium.deploy.names import check_host, check_node
from trillium.errors import UserError

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
CLOCK_SKEW: Final = timedelta(days=1)  # a node's clock may be behind the operator's
Key = ec.EllipticCurvePrivateKey
Authority = tuple[x509.Certificate, Key]


@dataclass(frozen=True)
class Request:
    """What a server or a node asks the authority to sign.

    Attributes:
        name: of the node; the first host of a server.
        hosts: under which a server is reached; none of a node.
        key: the public key.
        node_key: of a node, for Flower's node authentication, in OpenSSH's form.
    """

    name: str
    hosts: tuple[str, ...]
    key: ec.EllipticCurvePublicKey
    node_key: bytes = b""

    @property
    def fingerprint(self) -> str:
        """What both sides compare, on another channel than the one that the request came on."""
        return fingerprint(self.key, self.node_key)


def write_request(key: Key, name: str, hosts: Sequence[str] = (), node_key: bytes = b"") -> bytes:
    """Return a request as a file: PEM, and for a node the line of its key for Flower."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    if hosts:
        names = x509.SubjectAlternativeName(alternatives(hosts))
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM) + node_key


def read_request(path: Path) -> Request:
    """Read a request, and check that who wrote it has the key.

    Raises:
        UserError: it is none, or is not whole.
    """
    try:
        content = path.read_bytes()
        pem, end, node_key = content.partition(b"-----END CERTIFICATE REQUEST-----\n")
        found = x509.load_pem_x509_csr(pem + end)
        [name] = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = found.public_key()
        if not found.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("its signature is not that of its key")
        hosts: list[str] = []
        for extension in found.extensions:
            if not isinstance(extension.value, x509.SubjectAlternativeName):
                raise ValueError("it asks for more than a name")
            hosts = [str(host.value) for host in extension.value]
        if node_key:
            load_ssh_public_key(node_key)
    except (OSError, ValueError, InvalidSignature) as error:
        raise UserError(
            str(path),
            f"it is no request for a certificate ({error})",
            "Name the file that `trillium keys node` or `trillium keys server` wrote",
        ) from error
    if hosts:
        alternatives(hosts)
    else:
        check_node(str(name.value))
    return Request(str(name.value), tuple(hosts), key, node_key)


def issue(authority: Authority, request: Request, days: int = CERTIFICATE_DAYS) -> x509.Certificate:
    """Return the certificate that a request asks for: a server's if it names hosts, else a node's."""
    issuer, signer = authority
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    server, node = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    # A common name holds 64 characters; the alternative names are what is checked of a server.
    builder = (
        _builder(_name(request.name[:64]), issuer.subject, request.key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([server if request.hosts else node]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    if request.hosts:
        names = x509.SubjectAlternativeName(alternatives(request.hosts))
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256())


def new_authority() -> Authority:
    """Return a new authority."""
    key, name = new_key(), _name("Trillium federation authority")
    builder = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def read_authority(folder: Path, passphrase: bytes | None = None) -> Authority:
    """Read the authority of a folder.

    Raises:
        UserError: it is not there, or the passphrase is not that of its key.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), passphrase)
        if not isinstance(key, Key):
            raise ValueError("the key is not of an elliptic curve")
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is not that of the certificate")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            str(folder),
            f"its ca.crt and ca.key cannot be used ({error})",
            "Name the folder of the authority, and its passphrase",
        ) from error
    return certificate, key


def new_key() -> Key:
    """Return a new private key of a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def fingerprint(key: ec.EllipticCurvePublicKey, node_key: bytes = b"") -> str:
    """Return what public keys are known by, in groups that can be read out."""
    data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) + node_key
    text = hashlib.sha256(data).hexdigest()[:40]
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return hosts as a certificate holds them."""
    if not hosts:
        raise UserError(
            "no host",
            "the server's certificate must hold the names or addresses that nodes connect to",
            "Name at least one, such as fl.example.org or 192.0.2.7",
        )
    found = [check_host(host) for host in hosts]
    return [x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host) for host in found]


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


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
