"""Transformers' package of models is what it makes itself, though its files are read once."""

from __future__ import annotations

import sys

import transformers.models
from transformers.utils import import_utils

import trillium.models  # noqa: F401 - it is this that makes the package


def test_the_package_of_models_is_as_transformers_makes_it() -> None:
    found = sys.modules["transformers.models"]
    structure = import_utils.define_import_structure(transformers.models.__file__)
    plain = import_utils._LazyModule("plain", transformers.models.__file__, structure)
    assert found._class_to_module == plain._class_to_module
    assert found._modules <= plain._modules
    missing = plain._object_missing_backend
    assert missing.items() <= found._object_missing_backend.items()
    assert found.llama.LlamaConfig is transformers.LlamaConfig
