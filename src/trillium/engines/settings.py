"""The settings of the server's side of the app: Flower's run configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trillium.engines.patience import Grace, Patience
from trillium.errors import UserError
from trillium.federation.setting import Setting


class Settings(BaseModel):
    """The run configuration of the app; `deploy/folder.py` says what each one means."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    recipe: str
    server_data: Path = Field(alias="server-data")
    run_folder: Path = Field(alias="run-folder")
    session_address: str = Field(alias="session-address")
    session_bind: str = Field(alias="session-bind")
    session_authority: Path = Field(alias="session-authority")
    session_certificate: Path = Field(alias="session-certificate")
    session_key: Path = Field(alias="session-key")
    session_revoked: Path = Field(alias="session-revoked")
    min_nodes: int = Field(alias="min-nodes", ge=1)
    max_clients: int = Field(alias="max-clients", ge=1, le=10_000)
    wait_seconds: float = Field(alias="wait-seconds", gt=0)
    deadline_seconds: float = Field(alias="deadline-seconds", gt=0)
    round_seconds: float = Field(alias="round-seconds", gt=0)
    grace_seconds: float = Field(alias="grace-seconds", gt=0)
    repeats: int = Field(ge=0)
    log_format: Literal["text", "json"] = Field(alias="log-format")
    transport: Literal["session", "messages"]
    resume: bool
    write: str = ""

    def patience(self, config: Setting) -> Patience:
        """Return how long the server waits in a run; who works for a later round is not to hurry."""
        fleet, grace = config.fleet, None
        if fleet.min_replies is not None and not config.buffer:
            grace = Grace(fleet.min_replies, self.grace_seconds)
        seconds = min(self.deadline_seconds, fleet.deadline_seconds or self.deadline_seconds)
        return Patience(self.wait_seconds, seconds, self.round_seconds, grace)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """Check a run configuration."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"run configuration {first['loc'][0]}={first['input']!r}",
                first["msg"],
                "Correct it in the app's pyproject.toml, or in --run-config",
            ) from error
