"""Who is asked in a round, and how many must answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trillium.errors import UserError
from trillium.rng import derive_seed, generator


class FleetConfig(BaseModel):
    """Who is asked in a round, and how many must answer.

    Attributes:
        clients_per_round: size of the cohort; all clients by default.
        over_sample: how many times as many are asked in a round, of which the first
            `clients_per_round` to answer are taken (Bonawitz et al., 2019, arXiv 1902.01046: 1.3).
        take: with how many answers an ask of a round is over, if they are fewer than were asked. Who is
            later is not in the round, and is asked again when its answer has come.
        deadline_seconds: how long an answer is waited for: in a simulation by the clock of `plan`, in
            a deployment at most as long as its `deadline-seconds`.
        min_replies: how many of the cohort must stay until the end of the round; the whole cohort
            by default, so that no failure goes unseen.
        failure_rate: probability that a client of the cohort never replies in a round, to rehearse
            partial participation; the draw depends on seed, round and client, and on how often the
            round has failed before.
        on_failure: what follows a round in which fewer stayed than `min_replies`: the run stops, and
            `trillium resume` repeats the round (`stop`), or all sides go back to where they were before
            it, and on to the next one (`skip`).
        sampling: how a cohort that is not all clients is chosen: at random in each round (`uniform`),
            or in turns, so that who was asked is asked again after all others (`cyclic`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients_per_round: int | None = Field(default=None, ge=1)
    over_sample: float = Field(default=1.0, ge=1.0)
    take: int | None = Field(default=None, ge=1)
    deadline_seconds: float | None = Field(default=None, gt=0)
    min_replies: int | None = Field(default=None, ge=1)
    failure_rate: float = Field(default=0.0, ge=0.0, lt=1.0)
    on_failure: Literal["stop", "skip"] = "stop"
    sampling: Literal["uniform", "cyclic"] = "uniform"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse more replies than questions, and failures that would end the run."""
        if self.clients_per_round is not None:
            self._check_replies(self.clients_per_round)
        elif self.over_sample > 1:
            raise UserError(
                f"fleet.over_sample={self.over_sample} without fleet.clients_per_round",
                "all clients are asked in every round, so there are no more to ask",
                "Write how many are needed, such as fleet.clients_per_round=10, or fleet.take",
            )
        if self.failure_rate and self.min_replies is None:
            raise UserError(
                f"fleet.failure_rate={self.failure_rate}",
                "every client of the cohort must reply as long as fleet.min_replies is left out",
                "Write fleet.min_replies=1 or more beside it",
            )
        if self.sampling == "cyclic" and self.clients_per_round is None:
            raise UserError(
                "fleet.sampling=cyclic without fleet.clients_per_round",
                "all clients are asked in every round, so there are no turns",
                "Write how many are asked in a round, such as fleet.clients_per_round=10",
            )
        return self

    @property
    def late(self) -> str:
        """Which setting lets a round do without clients that are late; empty where none does."""
        given = {
            "over_sample": self.over_sample > 1,
            "take": self.take is not None,
            "deadline_seconds": self.deadline_seconds is not None,
        }
        names = [name for name, is_set in given.items() if is_set]
        return f"fleet.{names[0]}={getattr(self, names[0])}" if names else ""

    def size(self, total: int) -> int:
        """Return how many of all clients are asked in a round."""
        return math.ceil(round(self.over_sample * (self.clients_per_round or total), 6))

    def taken(self, total: int) -> int:
        """Return with how many answers of all clients a round has what it needs."""
        return self.take or min(self.clients_per_round or total, total)

    def period(self, total: int) -> int:
        """Return how many rounds lie between two of a client; one where cohorts are drawn."""
        return -(-total // (self.clients_per_round or total)) if self.sampling == "cyclic" else 1

    def check(self, total: int) -> None:
        """Refuse cohorts that so many clients cannot be.

        Raises:
            UserError: more are to be asked, or to answer, than there are.
        """
        size = self.clients_per_round or total
        if self.size(total) > total:
            more = f" and over_sample={self.over_sample}" if self.over_sample > 1 else ""
            raise UserError(
                f"fleet.clients_per_round={size}{more}",
                f"there are only {total} clients",
                f"Ask at most {total}, or raise data.num_clients",
            )
        if self.take is not None and self.take >= self.size(total):
            raise UserError(
                f"fleet.take={self.take}",
                f"only {self.size(total)} clients are asked in a round",
                f"Write fewer than {self.size(total)}",
            )
        self._check_replies(self.taken(total))

    def _check_replies(self, size: int) -> None:
        if (self.min_replies or size) > size:
            raise UserError(
                f"fleet.min_replies={self.min_replies}",
                f"only {size} clients are asked in a round",
                f"Write at most {size}",
            )


@dataclass
class Turns:
    """Which clients are asked in which of a few rounds, over and over.

    Attributes:
        of: the turn of each client, from 0 on. Who comes later gets the turn that fewest have.
        period: how many turns there are; it stays as it was in the first round.
    """

    of: dict[str, int] = field(default_factory=dict)
    period: int = 0

    def cohort(
        self, names: Sequence[str], number: int, period: int, seed: int, *, even: bool = True
    ) -> list[str]:
        """Return the clients of a round, sorted by name.

        Args:
            number: of the round, from 1 on.
            period: how many turns there are to be.
            seed: of the run; the order in which turns are dealt out follows from it.
            even: whether turns are of the same size. Else each client's follows from its own name, and
                one client more or less leaves those of all others as they are.
        """
        self.period = self.period or period
        new = [name for name in names if name not in self.of]
        if not even:
            self.of |= {name: derive_seed(seed, "turn", name) % self.period for name in new}
            new = []
        sizes = Counter(self.of.values())
        turns = [(sizes[turn], turn) for turn in range(self.period)]
        heapify(turns)
        for index in torch.randperm(len(new), generator=generator(seed, "turns", len(self.of))):
            size, turn = turns[0]
            self.of[new[index]] = turn
            heapreplace(turns, (size + 1, turn))
        return sorted(name for name in names if self.of[name] == (number - 1) % self.period)
