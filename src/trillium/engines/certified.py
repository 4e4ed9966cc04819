"""Keys of masked sums that nodes sign with the keys of their certificates.

A key that the server has put in the place of a node's would let it take the masks off. So each node
looks at the certificates of its peers: those that its authority has signed, or, as whoever has the
authority's key can sign any node, only those that its owner has pinned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trillium.engines.node_settings import NodeConfig
from trillium.engines.revoked import digest_of
from trillium.errors import UserError
from trillium.privacy.streams import told
from trillium.wire.kinds import MessageError

NUMBER: Final = 32  # bytes of each of the two numbers of a signature
SIGNED: Final = 2 * NUMBER


@dataclass
class Certified:
    """Signs a node's keys of one run, and looks at the signatures of others.

    Attributes:
        pinned: digests of the public keys of peers, by name; all that the authority has signed without.
    """

    run: str
    authority: x509.Certificate
    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)
    pinned: Mapping[str, str] | None = None

    @classmethod
    def read(cls, settings: NodeConfig, run: str) -> Self:
        """Read what the settings of a node name.

        Raises:
            UserError: a file cannot be used.
        """
        path = settings.authority
        try:
            authority = x509.load_pem_x509_certificate(path.read_bytes())
            path = settings.certificate
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            path = settings.key
            key = load_pem_private_key(path.read_bytes(), None)
            pinned = None
            if settings.peers is not None:
                path = settings.peers
                found = x509.load_pem_x509_certificates(path.read_bytes())
                pinned = {_name(peer): digest_of(peer.public_key()) for peer in found}
        except (OSError, ValueError, TypeError) as error:
            why = f"it cannot be used ({error})"
            instead = "Name a file of certificates as `trillium keys` makes it"
            raise UserError(str(path), why, instead, code="keys") from error
        assert isinstance(key, EllipticCurvePrivateKey)
        return cls(run, authority, certificate, key, pinned)

    def proof(self, name: str, keys: bytes) -> bytes:
        """Return the signature of keys, and the certificate of who has signed."""
        signature = self.key.sign(self._text(name, keys), ECDSA(SHA256()))
        numbers = (n.to_bytes(NUMBER, "big") for n in decode_dss_signature(signature))
        return b"".join(numbers) + self.certificate.public_bytes(Encoding.DER)

    def check(self, name: str, keys: bytes, proof: bytes) -> None:
        """Raise `MessageError` unless the node of a name has signed these keys for this run."""
        try:
            certificate = x509.load_der_x509_certificate(proof[SIGNED:])
            self._check(name, certificate)
            owner = certificate.public_key()
            if not isinstance(owner, EllipticCurvePublicKey):
                raise ValueError("its certificate is of another kind")
            numbers = (int.from_bytes(proof[at : at + NUMBER], "big") for at in (0, NUMBER))
            signature = encode_dss_signature(*numbers)
            owner.verify(signature, self._text(name, keys), ECDSA(SHA256()))
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
            why = str(error) or "they are not signed by it for this run"
            raise MessageError(f"the keys of {name} are not shown to be its own: {why}") from error

    def _check(self, name: str, certificate: x509.Certificate) -> None:
        certificate.verify_directly_issued_by(self.authority)
        now = datetime.now(UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise ValueError("its certificate is not good now")
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage or _name(certificate) != name:
            raise ValueError("its certificate is that of somebody else")
        if self.pinned is not None and self.pinned.get(name) != digest_of(certificate.public_key()):
            raise ValueError("its key is not among those that are pinned here")

    def _text(self, name: str, keys: bytes) -> bytes:
        return told("keys", self.run, name, keys)


def _name(certificate: x509.Certificate) -> str:
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)
