"""What a data owner lets a node do: the file that `policy` in node.toml names.

A run is looked at before anything is read or loaded, and each answer before it leaves. What is not
allowed is refused; the node's log and the server are told what was asked and is not allowed.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal, Self

import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillium.config.experiment import ExperimentConfig
from trillium.errors import PeerError, UserError
from trillium.experiment.folder import digest
from trillium.models.load import LanguageModel
from trillium.wire.kinds import Kind

log = logging.getLogger(__name__)

WEIGHTS: Final = "sha256:"


class Forbidden(PeerError):  # noqa: N818 - it is what it is, and is caught by name
    """The policy of this node does not allow what was asked."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the policy of the node does not allow {what}")


class Limit(BaseModel):
    """What a run must hide, and what all runs on the node may spend together.

    Attributes:
        unit: of what one more or less is to be hidden.
        epsilon, delta: of all runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["example", "client"]
    epsilon: float = Field(gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)


class Policy(BaseModel):
    """What is left out is allowed.

    Attributes:
        frameworks: those that may run here.
        models: ids as recipes write them, and `sha256:…` of frozen weights, which the node's log shows.
        codecs: those through which updates may go.
        rounds: of a run, at most.
        bytes_per_round, bytes_per_run: that may leave, at most.
        kinds: of tensors that may leave, beside `control`.
        min_clients: that must have answered in a round, by the recipe (`fleet.min_replies`).
        labels: whether the names of the classes in its rows may be told, where a recipe asks for them.
        prompts: whether the operator's prompts may be continued with this node's part of the model.
        signers: Ed25519 keys, as lines of OpenSSH; one of them must have signed the recipe.
        sums: `masked` if the server may see no more than sums of what nodes send.
        privacy: what must be hidden; the node keeps account of it in the folder of its state.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frameworks: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    codecs: tuple[str, ...] | None = None
    rounds: int | None = Field(default=None, ge=1)
    bytes_per_round: int | None = Field(default=None, ge=0)
    bytes_per_run: int | None = Field(default=None, ge=0)
    kinds: tuple[Kind, ...] | None = None
    min_clients: int | None = Field(default=None, ge=1)
    labels: bool = True
    prompts: bool = True
    signers: tuple[str, ...] | None = None
    sums: Literal["masked"] | None = None
    privacy: Limit | None = None

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read a policy; without a file everything is allowed.

        Raises:
            UserError: it cannot be read, or has settings that a policy does not have.
        """
        if path is None:
            return cls()
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValidationError, ValueError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
            raise UserError(
                f"policy {path}",
                f"it cannot be used ({why}), and without it nothing may run",
                "Correct it; docs/security.md has all settings",
                code="settings",
            ) from error

    def check(self, config: ExperimentConfig, signature: str) -> None:
        """Look at what a run is to do.

        Raises:
            Forbidden: it is not allowed.
        """
        if self.frameworks is not None and config.framework.name not in self.frameworks:
            raise Forbidden(f"framework={config.framework.name}")
        ids = [entry for entry in self.models or () if not _is_digest(entry)]
        if ids and config.model.id not in ids:
            raise Forbidden(f"model.id={config.model.id}")
        for codec in _codecs(config) if self.codecs is not None else ():
            if codec not in (self.codecs or ()):
                raise Forbidden(f"updates through {codec}")
        if self.rounds is not None and config.rounds > self.rounds:
            raise Forbidden(f"rounds={config.rounds}")
        if self.min_clients is not None and (config.fleet.min_replies or 0) < self.min_clients:
            raise Forbidden(f"fleet.min_replies={config.fleet.min_replies}")
        if self.sums is not None and not config.sums.hides:
            raise Forbidden(f"sums={config.sums.name}: they must be masked")
        if self.privacy is not None and config.privacy.unit != self.privacy.unit:
            raise Forbidden(f"privacy={config.privacy.name}: it must hide each {self.privacy.unit}")
        if self.signers is not None and not _signed(config, signature, self.signers):
            raise Forbidden("a recipe that nobody has signed whom it trusts")

    def check_weights(self, model: LanguageModel) -> None:
        """Look at the frozen weights of the model that was loaded.

        Raises:
            Forbidden: they are not among those that are allowed.
        """
        allowed = [entry for entry in self.models or () if _is_digest(entry)]
        if self.models is None:
            return
        found = WEIGHTS + weights_digest(model)
        log.info("the frozen weights are %s", found)
        if allowed and found not in allowed:
            raise Forbidden("the weights of this model")

    def check_answer(self, kinds: Mapping[str, int], in_round: int, in_run: int) -> None:
        """Look at an answer before it leaves.

        Args:
            kinds: bytes by kind of tensor.
            in_round, in_run: bytes that have left before.

        Raises:
            Forbidden: it may not leave.
        """
        for kind in kinds.keys() - {"control"} - {*(self.kinds or kinds)}:
            raise Forbidden(f"{kind} to leave")
        size = sum(kinds.values())
        if self.bytes_per_round is not None and in_round + size > self.bytes_per_round:
            raise Forbidden(f"{in_round + size} bytes to leave in a round")
        if self.bytes_per_run is not None and in_run + size > self.bytes_per_run:
            raise Forbidden(f"{in_run + size} bytes to leave in a run")


def weights_digest(model: LanguageModel) -> str:
    """Return what the frozen weights of a model are known by, names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict(keep_vars=True).items()):
        if not tensor.requires_grad:
            data = tensor.detach().cpu().contiguous()
            found.update(f"{name} {data.dtype} {list(data.shape)}".encode())
            found.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def what_is_asked(config: ExperimentConfig) -> str:
    """Return in a line what a run is to do with a node."""
    return (
        f"framework={config.framework.name} model.id={config.model.id} rounds={config.rounds} "
        f"wire.up=[{', '.join(_codecs(config))}] fleet.min_replies={config.fleet.min_replies} "
        f"evaluation.where={config.evaluation.where}"
    )


def _codecs(config: ExperimentConfig) -> list[str]:
    ups = [config.wire.up, *(tier.up or () for tier in config.tiers.values())]
    return sorted({codec.name for up in ups for codec in up})


def _is_digest(entry: str) -> bool:
    return entry.startswith(WEIGHTS)


def _signed(config: ExperimentConfig, signature: str, signers: Iterable[str]) -> bool:
    for line in signers:
        key = load_ssh_public_key(line.encode())
        assert isinstance(key, Ed25519PublicKey)
        try:
            key.verify(base64.b64decode(signature), signed_text(config))
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


def signature_of(recipe: str) -> str:
    """Return what the file is called that has the signature of a recipe."""
    return f"{Path(recipe).stem}.signature.json"


def signed_text(config: ExperimentConfig) -> bytes:
    """Return what a signature on a recipe is of: all its settings, resolved."""
    return f"trillium recipe {digest(config.tree())}".encode()
