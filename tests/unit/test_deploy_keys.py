"""Certificates and keys: what is in them, what OpenSSL says of them, and what is never overwritten."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from collections.abc import Callable
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

from trillium.deploy.keys import make_authority, make_keys, make_node, make_server
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


def test_what_is_there_stays_and_nodes_are_added(tmp_path: Path) -> None:
    first = make_keys(tmp_path, HOSTS, ["a"])
    before = contents(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in first} == set(before)
    assert make_keys(tmp_path, HOSTS[:1], ["a"]) == []
    added = make_keys(tmp_path, [], ["a", "b", "b"])
    assert {path.parent.name for path in added} == {"b"}
    assert len(added) == 4
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before
    issuer = certificate(tmp_path / "ca.crt")
    certificate(tmp_path / "nodes" / "b" / "client.crt").verify_directly_issued_by(issuer)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path, HOSTS, ["a"])
    before = contents(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: make_authority(tmp_path),
        lambda: make_server(tmp_path, HOSTS),
        lambda: make_node(tmp_path, "a"),
    ]
    for again in attempts:
        with pytest.raises(UserError, match="never overwritten") as error:
            again()
        assert error.value.given.startswith(str(tmp_path))
    assert contents(tmp_path) == before


def test_other_hosts_than_the_certificate_has(tmp_path: Path) -> None:
    make_keys(tmp_path, HOSTS, [])
    with pytest.raises(UserError, match=r"other\.example\.org: .* was made for fl\.example\.org"):
        make_keys(tmp_path, [*HOSTS, "other.example.org"], [])


@pytest.mark.parametrize("missing", ["ca.key", "server.crt", "nodes/a/node_key"])
def test_half_of_a_pair_is_an_error(tmp_path: Path, missing: str) -> None:
    make_keys(tmp_path, HOSTS, ["a"])
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=rf"lacks {Path(missing).name}"):
        make_keys(tmp_path, HOSTS, ["a"])


def test_an_authority_that_cannot_sign(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its ca.crt and ca.key cannot be used"):
        make_node(tmp_path, "a")
    make_authority(tmp_path)
    other = tmp_path / "other"
    make_authority(other)
    (tmp_path / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(UserError, match=r"the key is not that of the certificate"):
        make_node(tmp_path, "a")


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


def test_a_lost_authority_is_not_replaced_beside_what_it_signed(tmp_path: Path) -> None:
    make_keys(tmp_path, HOSTS, ["a"])
    (tmp_path / "ca.crt").unlink()
    (tmp_path / "ca.key").unlink()
    with pytest.raises(
        UserError, match=r"server.crt and nodes come from an authority that is missing"
    ):
        make_keys(tmp_path, HOSTS, ["b"])
