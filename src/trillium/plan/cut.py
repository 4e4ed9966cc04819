"""A cut model on paper; where a deep one belongs is read off one with a single block in each part."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from trillium.models.blocks import Trace, find_blocks, trace
from trillium.models.cut import check_cut, split_as_traced
from trillium.models.load import LanguageModel
from trillium.models.parts import Parts
from trillium.plan.fakes import Draws
from trillium.plan.federation import Federation


def cut_model(federation: Federation, cut: int, tail: int | None) -> Parts:
    """Cut the model of a federation; there are no values that could be held against the whole.

    Args:
        federation: whose model.
        cut: the first block of the server.
        tail: the first block of the client's last part in the U shape, else `None`.

    Raises:
        UserError: the cut does not exist, or parts would train the same parameter.
    """
    model, models = federation.model, federation.models
    if (cut, tail) in model._parts:
        return model._parts[cut, tail]
    check_cut(model.module, cut, tail)
    bounds = [cut] if tail is None else [cut, tail]
    sizes = [stop - start for start, stop in pairwise([0, *bounds, model.num_blocks])]
    fewest = [min(size, 1) for size in sizes]
    module = model.mount(models.state(model))  # not what a client has left there
    if not model.has_equal_blocks:
        parts = _probed(model, trace(module, bounds))
    else:
        few = models.get(federation.config, federation.texts.num_classes, sum(fewest))
        key = ("cut", id(few), tuple(fewest))
        if key not in models.traces:
            bounds = [sum(fewest[: place + 1]) for place in range(len(bounds))]
            traced = trace(few.mount(models.state(few)), bounds)
            models.traces[key] = traced, _probed(few, traced)
        traced, like = models.traces[key]
        parts = like
        if few is not model:
            found = _as_in(module, _runs(sizes), few.module, traced)
            parts = Parts.alike(split_as_traced(module, found), like)
    model._parts[cut, tail] = parts
    return parts


def _probed(model: LanguageModel, traced: Trace) -> Parts:
    """Return the parts of a model after a look at what they answer."""
    ids = torch.ones(2, 8, dtype=torch.int64)
    with Draws() as draws:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        parts = Parts(split_as_traced(model.module, traced), inputs)
    parts.head_is_random = draws.seen  # by values, which there are none of, it always looks so
    return parts


def _runs(sizes: list[int]) -> list[range]:
    """Return the indices of the blocks of each part."""
    return [range(sum(sizes[:place]), sum(sizes[: place + 1])) for place in range(len(sizes))]


def _as_in(deep: nn.Module, runs: list[range], few: nn.Module, traced: Trace) -> Trace:
    """Return the trace of a deep model, of whose blocks each is like the only one of its part.

    Args:
        deep: the model.
        runs: the indices of its blocks, part by part.
        few: the same with one block in each part.
        traced: the trace of that.
    """
    prefix, _ = find_blocks(deep)
    alike = {
        index: run.start for blocks, run in zip(runs, traced.runs, strict=True) for index in blocks
    }

    def name_in_few(name: str) -> str:
        if not name.startswith(f"{prefix}."):
            return name
        index, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
        return f"{prefix}.{alike[int(index)]}{dot}{rest}"

    parameters, modules = dict(few.named_parameters()), dict(few.named_modules())
    found = Trace(runs, [set() for _ in runs], {}, set())
    for name, parameter in deep.named_parameters():
        like = id(parameters[name_in_few(name)])
        for needed, needed_in_few in zip(found.needed, traced.needed, strict=True):
            if like in needed_in_few:
                needed.add(id(parameter))
    for name, module in deep.named_modules():
        module_in_few = modules[name_in_few(name)]
        if module_in_few in traced.forms:
            found.forms[module] = traced.forms[module_in_few]
        if module_in_few in traced.early_dropouts:
            found.early_dropouts.add(module)
    return found
