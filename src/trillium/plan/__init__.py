"""Plan before you spend: what a run will cost, predicted without weights, and held to the ledger.

The room is also the function of that name: `trillium.plan("gpt2")` is `trillium.plan.asked.plan`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that can be called: a package and a function of one name would hide each other."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Plan; the arguments are those of `trillium.plan.asked.plan`."""
        from trillium.plan.asked import plan

        return plan(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
