"""Cut any Hugging Face transformer into the parts that clients and server hold.

The model has n blocks. The *head* (client) is the embeddings and blocks `[0, cut)`. In two parts,
the *body* (server) is all the rest. In the U shape the body is blocks `[cut, tail)`, and the *tail*
(client) is blocks `[tail, n)`, the final norm and the classifier or language-model head, so that
labels stay with the client.

There is no code per architecture. A part is the model itself, driven by its own forward, in which
every module that belongs to another party is replaced, at its own index, by a stand-in without
parameters that hands on the received hidden states; behind a part's last block the forward is left.
Masks, rotary embeddings and position ids are therefore made by the model's own code. Whatever a
cut cannot carry (residuals across it, per-layer inputs) shows as a mismatch in `check_split`, which
refuses.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import (
    Trace,
    absent_modules,
    base_model,
    find_blocks,
    hidden_of,
    placeholder_ids,
    refuse_uncuttable,
    text_config,
    trace,
)
from trillium.models.stand_ins import Received, StandIn
from trillium.tasks.vocabulary import before_head, is_wide

Side = Literal["head", "body", "tail"]


class _LeftError(Exception):
    """Carries hidden states, its one argument, out of a forward past what others compute."""


def _leave(module: nn.Module, args: object, output: object) -> None:
    raise _LeftError(hidden_of(output))


def run_until(model: nn.Module, block: nn.Module, **inputs: Tensor) -> Tensor:
    """Return the hidden states behind a block of a whole model, whose forward is left there."""
    handle = block.register_forward_hook(_leave)
    try:
        base_model(model)(**inputs, use_cache=False)
    except _LeftError as left:
        hidden: Tensor = left.args[0]
        return hidden
    finally:
        handle.remove()
    raise AssertionError("the forward did not pass the block")


class Part(nn.Module):
    """One party's contiguous run of blocks, with what stands before or behind them.

    Submodules and parameters carry the names they have in the unsplit model, and the parameters are
    the same objects: no weight is copied. The tree of modules is a copy, so adapters that are added
    to the unsplit model later do not appear here. A part runs one forward at a time.

    Attributes:
        is_last: whether it ends in logits rather than in hidden states.
        apart: the model, if the logits of a batch are to be avoided (`trillium.tasks.vocabulary`).
    """

    _root: nn.Module
    apart: nn.Module | None

    def __init__(self, model: nn.Module, traced: Trace, index: int) -> None:
        super().__init__()
        sides: tuple[Side, ...] = ("head", "body", "tail")
        self.side, self.blocks = sides[index], traced.runs[index]
        self.is_last = index == len(traced.runs) - 1
        self._received = Received()
        memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
        for parameter in model.parameters():
            memo[id(parameter)] = parameter if id(parameter) in traced.needed[index] else None
        for module in absent_modules(model, traced, index):
            memo[id(module)] = StandIn(module, traced.forms[module], self._received)
        root = copy.deepcopy(model, memo)
        text_config(root).use_cache = False
        if not self.is_last:
            name, _ = find_blocks(model)
            root.get_submodule(f"{name}.{self.blocks[-1]}").register_forward_hook(_leave)
        # The part takes the place of the copy's root, so its names are those of the unsplit model.
        for table in ("_modules", "_parameters", "_buffers", "training"):
            self.__dict__[table] = root.__dict__[table]
        wide = self.is_last and is_wide(model)
        self.__dict__["apart"] = root if wide else None
        self.__dict__["_root"] = root  # past nn.Module, which would count it as a submodule

    def forward(
        self,
        hidden: Tensor | None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor,
        **options: object,
    ) -> Tensor:
        """Return hidden states `(batch, seq, hidden)`; from the last part the model's logits.

        Args:
            hidden: as the part before returned them, in the model's dtype; None for the head.
            input_ids: token ids `(batch, seq)`; only the head needs them. Without them, padding is
                where the mask is 0, which differs from the unsplit model only where a sequence
                classifier meets `pad_token_id` as a real, final token.
            attention_mask: `(batch, seq)`, 1 for text and 0 for padding; with what a cache holds in
                front, where there is one.
        """
        assert (hidden is None) == (self.side == "head"), f"wrong hidden states for a {self.side}"
        if input_ids is None:
            assert self.side != "head", "the head needs token ids"
            input_ids = placeholder_ids(self._root, attention_mask)
        self._received.hidden = hidden
        try:
            output = base_model(self._root)(
                input_ids=input_ids, attention_mask=attention_mask, **options
            )
        except _LeftError as left:
            output = left.args
        else:
            assert self.is_last, "the forward did not pass this part's last block"
        finally:
            self._received.hidden = None
        answer: Tensor = output[0]
        return answer

    def run(self, hidden: Tensor, **options: Any) -> Tensor:
        """Return what a loss is computed from: as `forward` does, or what the `apart` head sees."""
        if self.apart is None:
            answer: Tensor = self(hidden, **options)
            return answer
        with before_head(self.apart) as seen:
            self(hidden, **options)
        [answer] = seen
        return answer

    def takes(self, option: str) -> bool:
        """Whether the model's forward has an argument of this name."""
        return option in inspect.signature(base_model(self._root).forward).parameters

    @property
    def has_common_cache(self) -> bool:
        """Whether the model keeps what it has read in Transformers' common kind of cache."""
        usual: Any = getattr(base_model(self._root), "_supports_default_dynamic_cache", None)
        return usual is None or bool(usual())

    @property
    def text_config(self) -> Any:
        """The configuration of the model's language part."""
        return text_config(self._root)

    def embeddings(self) -> Tensor:
        """Return the word embeddings `(vocabulary, width)` of a head."""
        assert self.side == "head", f"a {self.side} holds no embeddings"
        weight: Tensor = base_model(self._root).get_input_embeddings().weight  # type: ignore[operator]
        return weight

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, as on the unsplit model."""
        if mode == self.training == self._root.training:  # asked before every batch
            return self
        self._root.training = mode
        return super().train(mode)


@dataclass(frozen=True)
class SplitModel:
    """The parts of one model; `tail` is None in two parts."""

    head: Part
    body: Part
    tail: Part | None
    cut: int
    num_blocks: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order in which a batch passes them."""
        return (self.head, self.body) if self.tail is None else (self.head, self.body, self.tail)


@contextmanager
def in_parts(model: str, cut: int) -> Iterator[None]:
    """Refuse a model of which a part fails alone, whatever its own code raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{model} cut at {cut}",
            f"its code does not run in parts ({repr(error)[:200]})",
            "Use the framework fedllm or kd for this model",
        ) from error


def split_model(model: nn.Module, cut: int, tail: int | None = None) -> SplitModel:
    """Cut a Hugging Face model, plain or wrapped by PEFT, without copying a weight.

    Put it on its device and add adapters first. The head gets `cut` blocks, `1 <= cut < n`. In the
    U shape the tail begins with block `tail`, `cut < tail <= n`; with n it has only the final norm
    and the classifier. A model or a place that cannot be cut is refused.
    """
    bounds = bounds_of(model, cut, tail)
    with in_parts(type(base_model(model)).__name__, cut):
        traced = trace(model, bounds)
        head, body, *rest = (Part(model, traced, index) for index in range(len(traced.runs)))
    return SplitModel(head, body, rest[0] if rest else None, cut, len(find_blocks(model)[1]))


def bounds_of(model: nn.Module, cut: int, tail: int | None) -> list[int]:
    """Return the blocks in front of which a model is cut; refuse what cannot be cut, or not there."""
    num_blocks = len(find_blocks(model)[1])
    refuse_uncuttable(model)
    for what, bound, low in (("cut", cut, 1), ("tail", tail, cut + 1)):
        high = num_blocks - 1 if what == "cut" else num_blocks
        if bound is not None and not low <= bound <= high:
            raise UserError(
                f"{what} {bound}",
                f"the model has {num_blocks} blocks, and head and body need at least one each",
                f"Write a {what} from {low} to {high}",
            )
    return [cut] if tail is None else [cut, tail]


def shared_parameters(split: SplitModel) -> set[str]:
    """Return the names of parameters that several parts hold (tied embeddings, mostly).

    Frozen, they are merely stored twice; trained, their gradients must be added up at every step.
    """
    held = Counter(name for part in split.parts for name, _ in part.named_parameters())
    return {name for name, count in held.items() if count > 1}
