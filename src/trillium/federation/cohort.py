"""Who is asked in a round, and how many must answer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trillium.errors import UserError


class FleetConfig(BaseModel):
    """Who is asked in a round, and how many must answer.

    Attributes:
        clients_per_round: size of the cohort; all clients by default.
        min_replies: how many of the cohort must stay until the end of the round; the whole cohort
            by default, so that no failure goes unseen.
        failure_rate: probability that a client of the cohort never replies in a round, to rehearse
            partial participation; the draw depends on seed, round and client, and on how often the
            round has failed before.
        on_failure: what follows a round in which fewer stayed than `min_replies`: the run stops, and
            `trillium resume` repeats the round (`stop`), or all sides go back to where they were before
            it, and on to the next one (`skip`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients_per_round: int | None = Field(default=None, ge=1)
    min_replies: int | None = Field(default=None, ge=1)
    failure_rate: float = Field(default=0.0, ge=0.0, lt=1.0)
    on_failure: Literal["stop", "skip"] = "stop"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse more replies than questions, and failures that would end the run."""
        if self.clients_per_round is not None:
            self._check_replies(self.clients_per_round)
        if self.failure_rate and self.min_replies is None:
            raise UserError(
                f"fleet.failure_rate={self.failure_rate}",
                "every client of the cohort must reply as long as fleet.min_replies is left out",
                "Write fleet.min_replies=1 or more beside it",
            )
        return self

    def check(self, total: int) -> None:
        """Refuse cohorts that so many clients cannot be.

        Raises:
            UserError: more are to be asked, or to answer, than there are.
        """
        size = self.clients_per_round or total
        if size > total:
            raise UserError(
                f"fleet.clients_per_round={size}",
                f"there are only {total} clients",
                f"Write at most {total}, or raise data.num_clients",
            )
        self._check_replies(size)

    def _check_replies(self, size: int) -> None:
        if (self.min_replies or size) > size:
            raise UserError(
                f"fleet.min_replies={self.min_replies}",
                f"only {size} clients are asked in a round",
                f"Write at most {size}",
            )
