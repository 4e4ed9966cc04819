"""Transformers is imported by nearly every verb, and what it does then takes seconds: less of it."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

import transformers
from transformers.utils import import_utils

_MODELS = "transformers.models"


def import_lightly() -> None:
    """Have Transformers read the files of its models once, and leave SciPy where it is.

    What they export it finds out by reading all 1,600 of them, first for itself and then for its
    package of models. SciPy is for the losses of object detection. Where Transformers is made otherwise
    one day, its package is left to itself.
    """
    if _MODELS in sys.modules:
        return
    for module in (transformers.utils, import_utils):
        module.is_scipy_available = lambda: False
    try:
        exports, missing = transformers._import_structure, transformers._object_missing_backend
        spec = PathFinder.find_spec(_MODELS, transformers.__path__)
        assert spec is not None
        found = import_utils._LazyModule(_MODELS, spec.origin, _below(exports), module_spec=spec)
        found._object_missing_backend = {**missing, **_below(missing)}
    except AttributeError:
        return
    sys.modules[_MODELS] = found


def _below(entries: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return what is said of the package of models, as it says it itself."""
    start = _MODELS.partition(".")[2] + "."
    return {n.removeprefix(start): own for n, own in entries.items() if n.startswith(start)}
