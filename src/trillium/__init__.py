"""Trillium: fine-tune language models on data that may not be moved.

    import trillium as tr

    result = tr.run("run", rounds=3, adapter={"r": 4})
    result.table(), result.metrics["accuracy"], result.plot("bytes"), result.model

What `__all__` names is the public interface; everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trillium.api.results import ComparisonResult as ComparisonResult
    from trillium.api.results import RunResult as RunResult
    from trillium.api.results import load as load
    from trillium.api.runs import compare as compare
    from trillium.api.runs import resume as resume
    from trillium.api.runs import run as run
    from trillium.errors import UserError as UserError
    from trillium.plan.asked import Plan as Plan
    from trillium.plan.asked import plan as plan

__version__ = "0.1.0"
__all__ = [
    "ComparisonResult",
    "Plan",
    "RunResult",
    "UserError",
    "__version__",
    "compare",
    "load",
    "plan",
    "resume",
    "run",
]

# Where each name stands. They are imported when they are first used: PyTorch takes seconds.
_PLACES = {
    "ComparisonResult": "trillium.api.results",
    "Plan": "trillium.plan.asked",
    "RunResult": "trillium.api.results",
    "UserError": "trillium.errors",
    "compare": "trillium.api.runs",
    "load": "trillium.api.results",
    "resume": "trillium.api.runs",
    "run": "trillium.api.runs",
}


if not TYPE_CHECKING:  # types are those above, and other names are mistakes

    def __getattr__(name: str) -> Any:
        if name == "plan":  # the room of that name, which can be called
            return import_module("trillium.plan")
        if name not in _PLACES:
            raise AttributeError(f"module 'trillium' has no attribute {name!r}")
        return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
