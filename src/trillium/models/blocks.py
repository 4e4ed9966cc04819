"""Where a transformer can be cut: its list of blocks, and what each piece needs of the rest.

Nothing here knows an architecture. The blocks are the longest list of layers; who needs which
parameter is read off the autograd graph of one short forward pass that is severed at the cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from trillium.errors import UserError
from trillium.models.stand_ins import Form, StandIn

# Any length does; a short one keeps the pass cheap on a large model.
_TRACE_LENGTH = 4


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the qualified name and the list of the model's transformer blocks, or refuse.

    The blocks are the longest outermost `nn.ModuleList` whose members all hold parameters; lists
    inside a member of another list (experts, for instance) do not count, nor those of other towers.
    """
    others = tuple(f"{name}." for name in other_towers(model))
    lists = {
        name: members
        for name, members in _outermost_lists(model)
        if len(members) > 1 and all(map(_holds, members)) and not name.startswith(others)
    }
    longest = max(map(len, lists.values()), default=0)
    found = [name for name, members in lists.items() if len(members) == longest]
    if len(found) != 1:
        many = f"it has {len(found)} lists of {longest} blocks ({', '.join(found)})"
        raise UserError(
            type(base_model(model)).__name__,
            many if found else "it has no list of two or more blocks to cut between",
            "Choose an encoder-only or decoder-only model with separate layers, or the framework "
            "fedllm or kd",
        )
    return found[0], lists[found[0]]


def are_equal(blocks: Iterable[nn.Module]) -> bool:
    """Whether all have parameters of the same names and shapes."""
    forms = {tuple((n, p.shape) for n, p in block.named_parameters()) for block in blocks}
    return len(forms) == 1


def _holds(block: nn.Module) -> bool:
    return isinstance(block, StandIn) or any(True for _ in block.parameters())


def _outermost_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    seen: set[nn.Module] = set()
    todo = [("", model)]
    while todo:
        prefix, module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, nn.ModuleList):
            yield prefix, module
        else:
            inside = [(f"{prefix}.{name}".lstrip("."), m) for name, m in module.named_children()]
            todo += reversed(inside)


def base_model(model: nn.Module) -> nn.Module:
    """Return the Hugging Face model inside a PEFT model (adapters stay active), or the model."""
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model()
    assert isinstance(base, nn.Module)
    return base


def text_config(model: nn.Module) -> Any:
    """Return the Hugging Face config of the model's language part."""
    config: Any = base_model(model).config
    return config.get_text_config()


def other_towers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what a model has beside its language part: towers of images, mostly.

    The language part is the module of the text configuration, with the task head and what encloses
    it. Texts never reach the others.
    """
    whole = base_model(model)
    config = getattr(whole, "config", None)
    if config is None or config.get_text_config() is config:
        return ()
    kind, found = type(config.get_text_config()), list[str]()
    named = whole.named_modules()
    tower = next((name for name, m in named if type(getattr(m, "config", None)) is kind), "")
    at, prefix = (
        whole,
        next(f"{name}." if name else "" for name, m in model.named_modules() if m is whole),
    )
    for depth, word in enumerate(tower.split(".") if tower else ()):
        for name, child in at.named_children():
            has_config = any(isinstance(module, PreTrainedModel) for module in child.modules())
            if name != word and _holds(child) and (depth or has_config):
                found.append(f"{prefix}{name}")
        at, prefix = at.get_submodule(word), f"{prefix}{word}."
    return tuple(found)


def freeze_other_towers(model: nn.Module) -> None:
    """Let nothing train that texts do not reach."""
    for name in other_towers(model):
        model.get_submodule(name).requires_grad_(False)


def refuse_uncuttable(model: nn.Module) -> None:
    """Refuse settings under which a part would not compute its piece of the unsplit model."""
    given, why, instead = "", "", ""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        given = f"the adapter {model.active_peft_config.peft_type.value}"
        why = "its virtual tokens enter beside the blocks and cannot be cut with them"
        instead = "Choose lora as the adapter"
    elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        given = "gradient checkpointing"
        why = "blocks would be computed again after another client's parameters were mounted"
        instead = "Switch gradient checkpointing off"
    elif getattr(text_config(model), "layerdrop", 0.0):
        given = "layerdrop"
        why = "whole blocks are skipped at random, also the one that ends a part"
        instead = "Set layerdrop to 0 in the model's config"
    if given:
        raise UserError(f"{given} on a split model", why, f"{instead}, or use the framework fedllm")


def hidden_of(output: object) -> Tensor:
    """Return the hidden states in a block's output, a tensor or a tuple that opens with it."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise UserError(
            f"a model whose blocks return {type(output).__name__}",
            "a cut carries one tensor of hidden states",
            "Choose another model, or the framework fedllm or kd",
        )
    return hidden


def placeholder_ids(model: nn.Module, attention_mask: Tensor) -> Tensor:
    """Return token ids `(batch, seq)` that tell padding from text and nothing else.

    Parts behind the head never see the text, but Hugging Face classifiers look for the last token
    that is not `pad_token_id`, so the padding must be where it is in the real ids.
    """
    pad = text_config(model).pad_token_id
    ids = torch.full_like(attention_mask, 1 if pad == 0 else 0, dtype=torch.long)
    return ids if pad is None else ids.masked_fill(attention_mask == 0, pad)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode, and each of their submodules back as it was."""
    before = {module: module.training for root in modules for module in root.modules()}
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@dataclass
class Trace:
    """What one forward pass, severed at the cuts, shows about a model.

    Attributes:
        needed: for each part, the ids of the parameters that it must hold.
        early_dropouts: dropouts that only run in front of the blocks.
    """

    runs: list[range]
    needed: list[set[int]]
    forms: dict[nn.Module, Form]
    early_dropouts: set[nn.Module]


def trace(model: nn.Module, bounds: Sequence[int]) -> Trace:
    """Run a few placeholder tokens through the model, severed in front of block b for each bound b.

    A part needs the parameters that its own piece of the graph reaches. That is exact where names
    and call order are not: tied embeddings belong to both ends, a relative-position table that all
    blocks read belongs to all parts, an unused pooler is reached from nowhere.
    """
    _, blocks = find_blocks(model)
    runs = [range(start, stop) for start, stop in pairwise([0, *bounds, len(blocks)])]
    found = Trace(runs, [], {}, set())
    ends = {blocks[run[-1]] for run in runs[:-1]}
    inside = set(blocks.modules())
    late: set[nn.Module] = set()
    reached: list[set[int]] = []

    def see(module: nn.Module, args: object, output: Any) -> object:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.dim():
            size = len(output) if isinstance(output, tuple) else None
            found.forms[module] = Form(first.shape[-1], first.dim(), size)
        if isinstance(module, nn.modules.dropout._DropoutNd) and module not in inside:
            (late if blocks[0] in found.forms else found.early_dropouts).add(module)
        if module not in ends:
            return output
        hidden = hidden_of(output)
        reached.append(_reached(hidden))
        severed = hidden.detach().requires_grad_()
        return (severed, *output[1:]) if isinstance(output, tuple) else severed

    device = next(blocks.parameters()).device
    mask = torch.ones(1, _TRACE_LENGTH, dtype=torch.long, device=device)
    with evaluating(model), _all_trainable(model), ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_hook(see))
        output: Any = base_model(model)(
            input_ids=placeholder_ids(model, mask), attention_mask=mask, use_cache=False
        )
        reached.append(_reached(output[0]))
    assert len(reached) == len(runs), "a block ran more than once, or not at all"
    found.early_dropouts -= late
    found.needed = _with_idle(model, reached)
    return found


def absent_modules(module: nn.Module, traced: Trace, part: int) -> Iterator[nn.Module]:
    """Yield the outermost modules that a part does without, and that something will call.

    What is never called (lists, mostly) stays, emptied, so that indices stay right.
    Dropouts in front of the blocks hold nothing, but would draw random numbers that the unsplit
    model draws only once.
    """
    for child in module.children():
        held = {id(parameter) for parameter in child.parameters()}
        needless = bool(held) and not held & traced.needed[part]
        early = part > 0 and child in traced.early_dropouts
        if child in traced.forms and (needless or early):
            yield child
        else:
            yield from absent_modules(child, traced, part)


def _reached(root: Tensor) -> set[int]:
    """Read the ids of the parameters that a tensor depends on off its autograd graph."""
    found: set[int] = set()
    seen: set[object] = set()
    todo: list[Any] = [root.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            found.add(id(node.variable))
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found


def _with_idle(model: nn.Module, reached: list[set[int]]) -> list[set[int]]:
    """Add the parameters that are reached from nowhere, so that every one is held somewhere.

    Quantised weights, unrouted experts and adapters that are switched off go to the part that holds
    the nearest module around them (the last such part where several do).
    """
    part_of: dict[str, int] = {}
    idle: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = [index for index, ids in enumerate(reached) if id(parameter) in ids]
        if not parts:
            idle[name] = id(parameter)
            continue
        for prefix in _enclosing(name):
            part_of[prefix] = max(part_of.get(prefix, 0), parts[-1])
    needed = [set(ids) for ids in reached]
    others = tuple(f"{name}." for name in other_towers(model))
    for name, identity in idle.items():
        if name.startswith(others):
            continue  # no text reaches it, so no part need hold it
        nearest = next(prefix for prefix in _enclosing(name) if prefix in part_of)
        needed[part_of[nearest]].add(identity)
    return needed


def _enclosing(name: str) -> list[str]:
    """Return the names of the modules around a name, innermost first, the root as ""."""
    words = name.split(".")
    return [".".join(words[:length]) for length in range(len(words) - 1, -1, -1)]
