"""Loaded by every process of a race before its program: says when the first optimiser step is done.

No contestant knows of it. Steps on tensors without values, as of a plan, are none, nor are those of an
optimiser of a few numbers, by which somebody tries out its options.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from types import ModuleType

EVENTS = os.environ.get("PEERS_EVENTS")


def event(name: str, **more: object) -> None:
    """Append a line to the race's events, whole, whoever else writes."""
    if EVENTS:
        line = json.dumps({"time": time.time(), "event": name, **more}) + "\n"
        handle = os.open(EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line.encode())
        os.close(handle)


class WhenLoaded(importlib.abc.MetaPathFinder):
    """Registers the hook as soon as PyTorch's optimisers are imported."""

    name = "torch.optim.optimizer"

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Let the usual finders find the module, and follow its loading with the hook."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def loaded(module: ModuleType) -> None:
            load(module)
            HANDLES.append(module.register_optimizer_step_post_hook(stepped))

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


FEW = 1000
HANDLES: list[object] = []


def stepped(optimizer: object, args: object, kwargs: object) -> None:
    """Say so, once in a process, unless the step was on paper or on next to nothing."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]  # type: ignore[attr-defined]
    if sum(p.numel() for p in tensors) > FEW and all(
        type(p.data).__name__ == "Tensor" and p.device.type != "meta" for p in tensors
    ):
        event("first_step")
        HANDLES.pop().remove()  # type: ignore[attr-defined]


if EVENTS:
    sys.meta_path.insert(0, WhenLoaded())
