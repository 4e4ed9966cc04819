"""Keys that are good no more, and how long certificates are still good."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

log = logging.getLogger(__name__)

WARN_DAYS: Final = 30
WATCH_SECONDS: Final = 1.0


class Revoked:
    """The list `revoked.txt`, read again when it has changed: a digest, a name and a day a line."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self.digests: frozenset[str] = frozenset()

    def changed(self) -> bool:
        """Look at the file; return whether it was another one than before."""
        if self._path is None:
            return False
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_size
            if seen == self._seen:
                return False
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read: %s", self._path, error.strerror)
            return False  # what was revoked stays so
        self._seen, self.digests = (
            seen,
            frozenset(line.split()[0] for line in lines if line.split()),
        )
        return True

    def has(self, certificate: x509.Certificate) -> bool:
        """Whether the key of a certificate is listed."""
        return digest_of(certificate.public_key()) in self.digests

    def watch(self, is_over: Callable[[], bool], act: Callable[[], None]) -> None:
        """Look every second, and act on what has changed."""
        while not is_over():
            if self.changed():
                act()
            time.sleep(WATCH_SECONDS)


def digest_of(key: CertificatePublicKeyTypes) -> str:
    """Return what a key is known by; the certificate of a renewal has the same."""
    data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def days_left(certificate: x509.Certificate) -> float:
    """Return how many days a certificate is still good."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def warn_of_end(what: str, certificate: x509.Certificate) -> None:
    """Say in the log that a certificate has to be renewed, `WARN_DAYS` before its end."""
    if (days := days_left(certificate)) < WARN_DAYS:
        log.warning(
            "the certificate of %s ends in %.0f days: renew it (docs/deploy.md)", what, days
        )
