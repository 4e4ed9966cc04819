"""The settings of a node: Flower's node configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trillium.errors import UserError, suggest

EXAMPLE: Final = 'Write for example --node-config \'name="hospital-a" data="data/train.csv"\''


class NodeConfig(BaseModel):
    """What a data owner tells its own node.

    Attributes:
        name: as it stands in the node's certificate and in its registration.
        data: the node's rows: csv, jsonl, json or parquet, in the columns that the recipe names.
        test: rows of the node that it measures models on, and does not train on; without them it holds
            some back where the recipe lets clients measure.
        model: folder of the model on this machine, in place of the one that the recipe names.
        certificate, key, authority: for the session.
        state: folder for what the node keeps between rounds and runs, and for its own log.
        peers: certificates of the nodes that it takes part in a masked sum with; without the file it
            does so with all that the authority has signed.
        policy: file that says what the node may do; everything without one.
        log_format: of the node's log: `text` or `json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str | None = None
    data: Path | None = None
    test: Path | None = None
    model: str | None = None
    certificate: Path = Path("keys/client.crt")
    key: Path = Path("keys/client.key")
    authority: Path = Path("keys/ca.crt")
    state: Path | None = None
    peers: Path | None = None
    policy: Path | None = None
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> NodeConfig:
        """Check a node configuration: its keys, its values, and that the node has data."""
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in values:
            if key not in known:
                raise UserError(
                    f"node configuration {key}={values[key]!r}",
                    "a node has no such setting",
                    suggest(key, known),
                    code="settings",
                )
        try:
            found = cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"node configuration {first['loc'][0]}={first['input']!r}",
                first["msg"],
                EXAMPLE,
                code="settings",
            ) from error
        if found.name is None or found.data is None:
            missing = "name" if found.name is None else "data"
            raise UserError(
                f"node configuration without {missing}",
                "the node would not know who it is or what to train on; no data comes from the server",
                EXAMPLE,
                code="settings",
            )
        return found
