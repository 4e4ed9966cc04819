"""`trillium keys`, as an operator and an owner type it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra deploy is not installed")

from cli_help import Cli
from trillium.cli.keys import PASSPHRASE
from trillium.deploy.certificates import issue, read_authority, read_request
from trillium.deploy.keys import ask_for_node

HOSTS = ("--host", "fl.example.org", "--host", "127.0.0.1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSPHRASE, "correct horse")


def test_from_an_authority_to_a_node_and_its_end(cli: Cli) -> None:
    def say(*words: str) -> str:
        return cli.done("keys", *words)

    say("authority", "authority")
    assert b"ENCRYPTED" in Path("authority/ca.key").read_bytes()
    say("server", "keys", *HOSTS)
    asked = say("sign", "keys/server.request", "--authority", "authority", "--server")
    assert "fl.example.org, 127.0.0.1: good until" in asked
    told = say("node", "node", "--name", "hospital-a")
    signed = say("sign", "node/hospital-a.request", "--authority", "authority", "--days", "100")
    prints = [
        next(line for line in text.splitlines() if line.startswith("Fingerprint: "))
        for text in (told, signed)
    ]
    assert prints[0] == prints[1]
    shown = say("show", "keys")
    assert "client.crt: hospital-a, until " in shown
    assert "100 days left: good" in shown
    say("revoke", "keys", "hospital-a")
    assert "client.crt: hospital-a, until " in (shown := say("show", "keys"))
    assert "days left: revoked" in shown


def test_a_certificate_that_ends_soon_is_shown_to_be_renewed(cli: Cli) -> None:
    assert cli("keys", "authority", "authority") == 0
    *_, request = ask_for_node(Path("node"), "a")
    found = issue(read_authority(Path("authority"), b"correct horse"), read_request(request), 29)
    from cryptography.hazmat.primitives.serialization import Encoding

    Path("a.crt").write_bytes(found.public_bytes(Encoding.PEM))
    assert "29 days left: renew it" in cli.done("keys", "show", "a.crt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["server", "keys", "--host", "http://fl.example.org:1"], "without scheme and port"),
        (["node", "keys", "--name", "a/b"], "Write 1 to 63 letters"),
        (
            ["sign", "missing.request", "--authority", "authority"],
            "is no request for a certificate",
        ),
        (["show", "missing"], "cannot be read"),
        (["show", "."], "there is no certificate in it"),
        (["revoke", "keys", "a"], "no certificate was signed for it here"),
        (["node", "keys"], "--name"),
    ],
)
def test_what_cannot_be_done(words: list[str], message: str, cli: Cli) -> None:
    assert message in cli.refused("keys", *words)
    assert os.listdir() == []  # noqa: PTH208


def test_a_short_passphrase_is_refused(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv(PASSPHRASE, "short")
    assert "fewer than 8 characters" in cli.refused("keys", "authority", "authority")


def test_nobody_types_a_passphrase_for_nothing(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    assert "is no request for a certificate" in cli.refused(
        "keys", "sign", "missing.request", "--authority", "authority"
    )
