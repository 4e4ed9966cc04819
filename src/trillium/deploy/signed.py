"""A signature on the recipe of a deployment, by whoever nodes trust to have looked at it."""

from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from trillium.config.experiment import experiment, read_yaml
from trillium.engines.policy import signature_of, signed_text
from trillium.errors import UserError
from trillium.files import write_atomic


def sign_recipe(folder: Path, key: Path, passphrase: str | None) -> Path:
    """Sign the recipe that the app of a deployment names; return the file with the signature."""
    app = folder / "app"
    try:
        settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        name = str(settings["tool"]["flwr"]["app"]["config"]["recipe"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            str(folder), f"it is no deployment ({error})", "Name what `trillium deploy` wrote"
        ) from error
    try:
        password = None if passphrase is None else passphrase.encode()
        private = load_ssh_private_key(key.read_bytes(), password)
        if not isinstance(private, Ed25519PrivateKey):
            raise ValueError("it is of another kind")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--key {key}",
            f"it cannot sign ({error})",
            "Make one with ssh-keygen -t ed25519; its passphrase goes into TRILLIUM_SIGNER_PASSPHRASE",
        ) from error
    recipe = app / "trillium_app" / name
    signature = private.sign(signed_text(experiment(read_yaml(recipe))))
    path = recipe.with_name(signature_of(recipe.name))
    write_atomic(path, json.dumps(base64.b64encode(signature).decode()))
    return path
