"""Certificates and keys: what is in them, what OpenSSL says of them, and what is never overwritten."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from trillium.deploy.certificates import read_authority, read_request
from trillium.deploy.keys import (
    ask_for_node,
    ask_for_server,
    make_authority,
    make_keys,
    read_certificate,
    revoke,
    sign,
)
from trillium.engines.revoked import Revoked, days_left
from trillium.errors import UserError

HOSTS = ["fl.example.org", "192.0.2.7", "::1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "federation"
    make_keys(folder, HOSTS, ["clinic-1", "clinic-2"])
    return folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def common_name(found: x509.Certificate) -> object:
    return found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_files_and_who_may_read_them(made: Path) -> None:
    node = {"client.crt", "client.key", "node_key", "node_key.pub"}
    assert set(contents(made)) == {
        *("ca.crt", "ca.key", "server.crt", "server.key"),
        *(f"nodes/{name}/{file}" for name in ("clinic-1", "clinic-2") for file in node),
    }
    for path in made.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.suffix == ".key" or path.name == "node_key":
            assert mode == 0o600, path
        elif path.is_file():
            assert mode == 0o644, path


def test_each_certificate_is_for_its_owner(made: Path) -> None:
    server = certificate(made / "server.crt")
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(host.value) for host in hosts] == HOSTS
    for name in ("clinic-1", "clinic-2"):
        node = certificate(made / "nodes" / name / "client.crt")
        assert common_name(node) == name
        purposes = node.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert node.not_valid_after_utc - datetime.now(UTC) > timedelta(days=800)
    for stem in ("ca", "server", "nodes/clinic-1/client"):
        key = load_pem_private_key((made / f"{stem}.key").read_bytes(), password=None)
        assert key.public_key() == certificate(made / f"{stem}.crt").public_key()


def test_an_independent_verifier_accepts_them(made: Path) -> None:
    policy = PolicyBuilder().store(Store([certificate(made / "ca.crt")]))
    server, node = certificate(made / "server.crt"), made / "nodes" / "clinic-1" / "client.crt"
    policy.build_server_verifier(x509.DNSName("fl.example.org")).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.DNSName("example.org")).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        policy.build_client_verifier().verify(server, [])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made / "ca.crt")
    context.load_cert_chain(node, made / "nodes" / "clinic-1" / "client.key")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")
@pytest.mark.parametrize(
    ("file", "purpose", "accepted"),
    [
        ("server.crt", "sslserver", True),
        ("server.crt", "sslclient", False),
        ("nodes/clinic-1/client.crt", "sslclient", True),
        ("nodes/clinic-1/client.crt", "sslserver", False),
    ],
)
def test_openssl_accepts_them_for_their_purpose_only(
    made: Path, file: str, purpose: str, accepted: bool
) -> None:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
    done = subprocess.run(
        [*command, "-CAfile", "ca.crt", file], cwd=made, capture_output=True, text=True
    )
    assert (done.returncode == 0) == accepted, done.stderr


def test_node_keys_are_what_ssh_keygen_makes(made: Path) -> None:
    node = made / "nodes" / "clinic-1"
    private = load_ssh_private_key((node / "node_key").read_bytes(), password=None)
    public = (node / "node_key.pub").read_bytes()
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
    assert public.endswith(b" clinic-1\n")
    form = (Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert load_ssh_public_key(public).public_bytes(*form) == (
        private.public_key().public_bytes(*form)
    )


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen command")
def test_ssh_keygen_reads_node_keys(made: Path) -> None:
    node = made / "nodes" / "clinic-1"
    command = ["ssh-keygen", "-y", "-f", str(node / "node_key")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == (node / "node_key.pub").read_text().split()[:2]


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    make_authority(tmp_path, None)
    ask_for_server(tmp_path, HOSTS)
    ask_for_node(tmp_path / "node", "a")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="never overwritten"):
        make_authority(tmp_path, None)
    ask_for_server(tmp_path, HOSTS)
    ask_for_node(tmp_path / "node", "a")
    after = contents(tmp_path)
    requests = {name for name in before if name.endswith(".request")}
    assert {name for name in before if after[name] != before[name]} <= requests


@pytest.mark.parametrize("missing", ["client.key", "node_key", "node_key.pub"])
def test_half_of_the_keys_of_a_node_is_an_error(tmp_path: Path, missing: str) -> None:
    ask_for_node(tmp_path, "a")
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=rf"lacks {missing}"):
        ask_for_node(tmp_path, "a")


PASSPHRASE = b"correct horse"


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    make_authority(tmp_path / "authority", PASSPHRASE)
    return tmp_path / "authority"


def signed(offline: Path, request: Path, out: Path, *, server: bool = False) -> x509.Certificate:
    return sign(offline, PASSPHRASE, request, out, days=100, server=server)[1]


def test_private_keys_stay_where_they_are_made(tmp_path: Path, offline: Path) -> None:
    *keys, request = ask_for_node(tmp_path / "node", "clinic-1")
    secrets = [path.read_bytes() for path in keys if path.suffix != ".pub"]
    found = signed(offline, request, tmp_path / "keys")
    assert common_name(found) == "clinic-1"
    assert 99 < days_left(found) <= 100
    found.verify_directly_issued_by(certificate(offline / "ca.crt"))
    private = load_pem_private_key((tmp_path / "node" / "client.key").read_bytes(), password=None)
    assert private.public_key() == found.public_key()
    crossed = {**contents(tmp_path / "keys"), "request": request.read_bytes()}
    for secret in secrets:
        body = secret.splitlines()[1]
        assert not any(body in content for content in crossed.values())
    assert set(contents(tmp_path / "keys")) == {
        "ca.crt",
        "nodes/clinic-1/client.crt",
        "nodes/clinic-1/node_key.pub",
    }
    node_key = (tmp_path / "node" / "node_key.pub").read_bytes()
    assert (tmp_path / "keys" / "nodes" / "clinic-1" / "node_key.pub").read_bytes() == node_key


def test_the_key_of_the_authority_is_encrypted(tmp_path: Path, offline: Path) -> None:
    *_, request = ask_for_node(tmp_path / "node", "a")
    for wrong in (b"another phrase", None):
        with pytest.raises(UserError, match=r"ca.crt and ca.key cannot be used"):
            sign(offline, wrong, request, tmp_path / "keys", days=1, server=False)
    assert not (tmp_path / "keys").exists()


def test_a_renewal_is_of_the_same_key_and_another_key_needs_a_revocation(
    tmp_path: Path, offline: Path
) -> None:
    out, place = tmp_path / "keys", tmp_path / "keys" / "nodes" / "a"
    *_, request = ask_for_node(tmp_path / "node", "a")
    first = signed(offline, request, out)
    *_, again = ask_for_node(tmp_path / "node", "a")
    assert again == request
    second = signed(offline, request, out)
    assert read_certificate(place / "client.crt") == second != first
    *_, other = ask_for_node(tmp_path / "other", "a")
    with pytest.raises(UserError, match="two would go by the name of a"):
        signed(offline, other, out)
    revoke(out, "a")
    revoked = Revoked(out / "revoked.txt")
    assert revoked.changed()
    assert not revoked.changed()
    # Whichever certificate the key has.
    assert revoked.has(first)
    assert revoked.has(second)
    third = signed(offline, other, out)
    assert not revoked.has(third)
    with pytest.raises(UserError, match="its key was revoked"):
        signed(offline, request, out)


def test_a_node_cannot_get_the_certificate_of_a_server(tmp_path: Path, offline: Path) -> None:
    *_, request = ask_for_server(tmp_path / "server", HOSTS)
    with pytest.raises(UserError, match="names hosts, as a server's does"):
        signed(offline, request, tmp_path / "keys")
    found = signed(offline, request, tmp_path / "keys", server=True)
    policy = PolicyBuilder().store(Store([certificate(offline / "ca.crt")]))
    policy.build_server_verifier(x509.DNSName("fl.example.org")).verify(found, [])
    *_, request = ask_for_node(tmp_path / "node", "a")
    with pytest.raises(UserError, match="is that of a node"):
        signed(offline, request, tmp_path / "keys", server=True)


def test_a_request_that_was_changed_is_refused(tmp_path: Path) -> None:
    *_, request = ask_for_node(tmp_path, "a")
    *_, other = ask_for_node(tmp_path / "other", "b")
    whole = request.read_bytes()
    body, other_body = whole.splitlines(), other.read_bytes().splitlines()
    # The name of one under the signature of the other; the key of one under that, too.
    for number in range(1, 6):
        changed = [*body[:number], other_body[number], *body[number + 1 :]]
        if changed != body:
            request.write_bytes(b"\n".join(changed) + b"\n")
            with pytest.raises(UserError, match="no request for a certificate"):
                read_request(request)
    request.write_bytes(whole)
    assert read_request(request).name == "a"
    assert read_request(request).fingerprint != read_request(other).fingerprint


def test_another_authority_does_not_get_between(tmp_path: Path, offline: Path) -> None:
    *_, request = ask_for_node(tmp_path / "node", "a")
    signed(offline, request, tmp_path / "keys")
    make_authority(tmp_path / "other", PASSPHRASE)
    with pytest.raises(UserError, match=r"its ca.crt is of another authority"):
        signed(tmp_path / "other", request, tmp_path / "keys")


def test_an_authority_that_cannot_sign(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its ca.crt and ca.key cannot be used"):
        read_authority(tmp_path)
    make_authority(tmp_path, None)
    make_authority(tmp_path / "other", None)
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(UserError, match=r"the key is not that of the certificate"):
        read_authority(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "a b", "é", "x" * 64, "a\n"])
def test_node_names_are_checked_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="file name"):
        make_keys(tmp_path / "new", HOSTS, ["good", name])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "host", ["", "https://x", "x:9", "a..b", "-a", "a_b", "x" * 64, "1.2.3.4/8"]
)
def test_hosts_are_checked_before_anything_is_made(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match="neither a DNS name nor an IP address"):
        make_keys(tmp_path / "new", [host], ["good"])
    assert not (tmp_path / "new").exists()


def test_a_server_certificate_needs_a_host(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold the names or addresses"):
        make_keys(tmp_path / "new", [], ["a"])
    assert not (tmp_path / "new").exists()
