"""Which state each node has said to keep, and who came back with another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trillium.federation.engine import Gathered


@dataclass
class Held:
    """What nodes keep between rounds, as they have said.

    Attributes:
        rounds: by node, the round of the state that it keeps.
        new: those that hold nothing of earlier rounds, which the framework does not know yet.
        gone: those that came back with an earlier state than they had said to keep, and why that is.
    """

    rounds: dict[str, int] = field(default_factory=dict)
    new: set[str] = field(default_factory=set)
    gone: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, number: int | None) -> None:
        """Take note of the round whose state a node keeps; `None` if it keeps nothing."""
        self.rounds.pop(name, None)
        if number is not None:
            self.rounds[name] = number

    def places(self, names: Iterable[str], number: int) -> Mapping[str, int]:
        """Return the round whose state each node is to have: what it keeps, else that of all."""
        return {name: self.rounds.get(name, number) for name in names}

    def came(self, name: str, found: int | None) -> bool:
        """Whether a node came with the state that it had said to keep; if not, it begins anew."""
        held = self.rounds.get(name)
        if found is None:
            self.new.add(name)
        if held is None:
            return found is not None
        if found is not None and found >= held:
            self.new.discard(name)  # all have gone back to where it is, since it was behind
            return True
        what = "without its state" if found is None else f"with its state of round {found}"
        self.gone[name] = f"it came back {what}, and had kept that of round {held}"
        self.new.add(name)
        del self.rounds[name]
        return False

    def gathered(self, present: set[str]) -> Gathered:
        """Return who is there, and forget what that says of the others."""
        new, gone = self.new, self.gone
        self.new, self.gone = set(), {}
        return Gathered(present, new, gone)
