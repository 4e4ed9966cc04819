"""The gate of a node: what its policy allows leaves, and its own log says what has left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from trillium.config.experiment import ExperimentConfig
from trillium.engines.budget import Budget
from trillium.engines.journal import Journal
from trillium.engines.policy import Forbidden, Policy
from trillium.errors import UserError
from trillium.federation.client import Client
from trillium.wire.wire import Packed


class Gate:
    """Looks at each answer of one run, and writes a line for it.

    Attributes:
        policy: of the node.
    """

    def __init__(self, policy: Policy, state: Path | None, run: str) -> None:
        if policy.privacy is not None and state is None:
            raise UserError(
                "a policy with privacy",
                "the node has no place for an account of what was spent",
                "Write `state` in node.toml",
                code="settings",
            )
        self.policy, self._run = policy, run
        self._budget: Budget | None = None
        self._state = state
        self._journal = None if state is None else Journal(state)
        self._left = Counter[int]() if self._journal is None else self._journal.left(run)

    def open(self, config: ExperimentConfig, signature: str) -> None:
        """Look at what a run is to do.

        Raises:
            Forbidden: it is not allowed.
        """
        self.policy.check(config, signature)
        if self.policy.privacy is not None:
            assert self._state is not None
            self._budget = Budget(self.policy.privacy, self._state, self._run, config)
            self._budget.open()

    def guard(self, client: Client) -> None:
        """Look at the model of a client, and at all that it answers and draws from now on.

        Raises:
            Forbidden: its weights are not allowed.
        """
        self.policy.check_weights(client.model)
        client.leave = self.leave
        if self._budget is not None:
            self._budget.watch(client)

    def asked(self, what: str, *, refused: str | None = None) -> None:
        """Write down what a run is to do, and why it may not."""
        self._write({"verb": "opening", "asked": what, "refused": refused}, b"")
        self.sync()

    def leave(self, verb: str, number: int, down: int, packed: Packed) -> None:
        """Let an answer leave.

        Raises:
            Forbidden: it may not.
        """
        content = {"verb": verb, "round": number, "bytes_down": down, "kinds": packed.kinds}
        try:
            self.policy.check_answer(packed.kinds, self._left[number], self._left.total())
            if self._budget is not None:
                self._budget.leave(number)
        except Forbidden as error:
            self._write({**content, "refused": str(error)}, b"")
            raise
        self._left[number] += len(packed.data)
        self._write({**content, "refused": None}, packed.data)

    def told(self, verb: str, number: int, down: int, answer: bytes) -> None:
        """Write down an answer to the engine, which holds no tensor."""
        content = {"verb": verb, "round": number, "bytes_down": down, "kinds": {}}
        self._write({**content, "refused": None}, answer)

    def sync(self) -> None:
        """Let the log outlast a power cut."""
        if self._journal is not None:
            self._journal.sync()

    def _write(self, content: dict[str, object], left: bytes) -> None:
        if self._journal is not None:
            self._journal.add({"run": self._run, **content}, left)
