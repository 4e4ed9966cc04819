"""A client's part of a model, built without the rest: of a checkpoint only its own tensors are read.

The model is built twice on the meta device, where nothing takes memory: once to see what each part
needs (`trillium.models.blocks.trace`), once with stand-ins for what others hold, which Transformers
then fills from the checkpoint as it fills any model. Files are read tensor by tensor, and never mapped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from trillium.models.base import ModelConfig, add_generation, form_of
from trillium.models.blocks import Trace, absent_modules, find_blocks, trace
from trillium.models.checked import check_read
from trillium.models.cut import bounds_of
from trillium.models.draws import draw_missing
from trillium.models.hub import explained, locate
from trillium.models.inputs import Inputs
from trillium.models.stand_ins import Form, StandIn, is_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ends:
    """What a client holds: the embeddings and the first blocks, perhaps the last ones, too.

    Attributes:
        cut: how many blocks at the beginning.
        has_tail: whether it holds the end of the model.
        tail: the first block of that end; only the final norm and the task head where it is left out.
    """

    cut: int
    has_tail: bool = False
    tail: int | None = None

    def tail_of(self, num_blocks: int) -> int | None:
        """Return the first block of the client's last part in a model of so many, if it has one."""
        if not self.has_tail:
            return None
        return num_blocks if self.tail is None else self.tail


def load_part(
    config: ModelConfig, auto_class: str, inputs: Inputs, ends: Ends, seed: int
) -> tuple[nn.Module, set[str]] | None:
    """Return a client's part as `load_base` returns the whole, or nothing where the whole must be read.

    That is so, and said, where weights are not read as they are, or not from safetensors.
    """
    why = ""
    if config.random_weights:
        why = "its weights are drawn, not read"
    elif config.quantize != "none":
        why = "its weights are quantised as they are read"
    elif config.resize_embeddings and inputs.num_tokens > inputs.num_embeddings:
        why = "new embeddings are drawn like the others of the whole"
    else:
        with explained(config.id), open_tensors(locate(config.id), config.revision) as tensors:
            if tensors is not None:
                return read_part(config, auto_class, inputs.hf_config, ends, tensors, seed)
        why = "it has no weights in the safetensors format"
    log.warning("model.id=%s is loaded whole before it is cut: %s", config.id, why)
    return None


def read_part(
    config: ModelConfig,
    auto_class: str,
    hf_config: Any,
    ends: Ends,
    tensors: Mapping[str, Any],
    seed: int,
) -> tuple[nn.Module, set[str]]:
    """Return a client's part, and the names of what its checkpoint lacks.

    Args:
        tensors: of the checkpoint (`open_tensors`).
    """
    options = form_of(config, hf_config)
    with torch.device("meta"):
        whole = getattr(transformers, auto_class).from_config(hf_config, **options)
    made: Any = type(whole)
    model, found = _without_others(whole, ends).from_pretrained(
        None,
        config=hf_config,
        state_dict=tensors,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    model.__class__ = made
    classifies = "Classification" in auto_class
    check_read(model, {**found, "unexpected_keys": ()}, config.id, classifies=classifies)
    add_generation(model, config)
    return model, draw_missing(model, found, seed)


def _without_others(whole: nn.Module, ends: Ends) -> Any:
    """Return the class of a model that builds the client's part alone.

    Args:
        whole: the model on the meta device; spent.
    """
    cut, tail = ends.cut, ends.tail_of(len(find_blocks(whole)[1]))
    bounds = bounds_of(whole, cut, tail)
    _imagine(whole)
    traced = trace(whole, bounds)
    own = traced.needed[0] | (traced.needed[2] if tail is not None else set())
    both = Trace(traced.runs, [own], traced.forms, set())
    names = {module: name for name, module in whole.named_modules()}
    absent = {names[m]: traced.forms[m] for m in absent_modules(whole, both, 0)}
    others = {name for name, p in whole.named_parameters() if id(p) not in own}
    made: Any = type(whole)

    class Own(made):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _drop(self, absent, others)

        def _init_weights(self, module: nn.Module) -> None:
            # What reaches into others' modules has nothing to draw here.
            has_own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if has_own or is_whole(module):
                super()._init_weights(module)

    Own.__name__, Own.__qualname__, Own.__module__ = (
        made.__name__,
        made.__qualname__,
        made.__module__,
    )
    return Own


def _imagine(model: nn.Module) -> None:
    """Give a model on the meta device tensors that seem to be on the CPU: masks are real there."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, nn.Parameter] = {}
    cpu = torch.device("cpu")
    originals = [*model.parameters()]  # which keeps their ids in use
    for parameter in originals:
        fake = FakeTensor(mode, parameter.data, cpu, requires_grad=True, _is_param=True)
        made[id(parameter)] = fake  # type: ignore[assignment]
    for module in model.modules():
        for name, old in module._parameters.items():
            module._parameters[name] = None if old is None else made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = FakeTensor(mode, buffer, cpu)


def _drop(model: Any, absent: Mapping[str, Form], others: set[str]) -> None:
    """Leave out modules and parameters that others hold."""
    for name, form in absent.items():
        owner, _, attribute = name.rpartition(".")
        place = model.get_submodule(owner)
        setattr(place, attribute, StandIn(getattr(place, attribute), form, None))
    for name in [name for name, _ in model.named_parameters() if name in others]:
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._parameters[attribute] = None
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = model.all_tied_weights_keys.items()
    model.all_tied_weights_keys = {k: v for k, v in tied if k in held and v in held}


@contextmanager
def open_tensors(location: str, revision: str | None) -> Iterator[dict[str, Any] | None]:
    """Yield the tensors of a checkpoint by name, none of them read yet; nothing without safetensors.

    Args:
        location: a folder, or a hub id, whose files are then fetched.
    """
    with ExitStack() as stack:
        files = _files(location, revision)
        found: dict[str, Any] = {}
        for file in files or ():
            reader = stack.enter_context(safe_open(file, "pt", backend="pread"))
            found |= {name: _Unread(reader, name) for name in reader.keys()}  # noqa: SIM118 - no mapping
        yield found if files else None


@dataclass
class _Unread:
    """A tensor of a file; safetensors' own slices hold it twice while they read it."""

    reader: Any
    name: str
    was_read: bool = False

    def __getitem__(self, key: Any) -> Tensor:
        self.was_read = True
        found: Tensor = self.reader.get_tensor(self.name)
        return found[key]


def _files(location: str, revision: str | None) -> list[str]:
    def find(name: str) -> str | None:
        options = {"_raise_exceptions_for_missing_entries": False, "revision": revision}
        path: str | None = cached_file(location, name, **options)
        return path

    whole = find(SAFE_WEIGHTS_NAME)
    if whole is not None:
        return [whole]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return [file for file in map(find, sorted(set(shards))) if file is not None]
