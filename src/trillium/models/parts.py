"""The two sides of a cut model at work: parts with their slots, and the server's body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from trillium.errors import UserError
from trillium.models.blocks import evaluating
from trillium.models.cut import SplitModel, in_parts, shared_parameters
from trillium.models.slots import Slots, State
from trillium.rng import scoped_rng
from trillium.tasks.batches import MULTIPLE
from trillium.wire.kinds import Tensors


class Parts:
    """A cut model with the slots of each part's trainable parameters; `tail` has none in two parts.

    `head_is_random` says whether the head draws random numbers in training, as dropout does.
    """

    def __init__(self, split: SplitModel, probe: Mapping[str, Tensor], num_classes: int) -> None:
        self.split, self.num_classes = split, num_classes
        self.head, self.body = Slots(split.head), Slots(split.body)
        self.tail = Slots(split.tail if split.tail is not None else nn.Module())
        # What a client holds all the time, whichever of them it runs.
        self.at_client = nn.ModuleList(
            [part for part in (split.head, split.tail) if part is not None]
        )
        client = {*self.head.names, *self.tail.names}
        tied = (client & {*self.body.names}) | (shared_parameters(split) & client)
        if tied:
            resized = any("trainable_tokens" in name for name in tied)
            raise UserError(
                f"framework.cut={split.cut}",
                f"{', '.join(sorted(tied))} would train in two parts at once (tied weights)",
                "Use the model's own tokenizer, or a model without tied weights"
                if resized
                else "Write adapter=lora, which keeps them frozen, or choose a model without tied "
                "weights",
            )
        mask = probe["attention_mask"]
        name = split.head.text_config.model_type
        with in_parts(name, split.cut), evaluating(split.head), torch.no_grad():
            _check_rows(split, probe)
            hidden = split.head(None, input_ids=probe["input_ids"], attention_mask=mask)
            self.width = hidden.shape[-1]
            self.head_is_random = draws(split.head, partial(split.head, None, **probe), hidden)

    def frozen_at_client(self) -> Iterator[Tensor]:
        """Yield what a client holds of both its parts that nobody mounts anything for."""
        slots = {*self.head.names, *self.tail.names}
        for part in self.at_client:
            yield from (tensor for name, tensor in part.named_parameters() if name not in slots)
            yield from part.buffers()


def _check_rows(split: SplitModel, probe: Mapping[str, Tensor]) -> None:
    """Refuse a model whose hidden states are not one row for each token of a text, text by text.

    Raises:
        UserError: it pads within itself, or turns the axes; padding could not be told from text.
    """
    ids, mask = (probe[name][:1, :MULTIPLE] for name in ("input_ids", "attention_mask"))
    shape = split.head(None, input_ids=ids, attention_mask=mask).shape
    if shape[:2] != ids.shape:
        raise UserError(
            f"{split.head.text_config.model_type} cut at {split.cut}",
            f"of {tuple(ids.shape)} tokens its blocks make hidden states {tuple(shape)}: it pads "
            "within itself or turns the axes, and a cut carries a row for each token",
            "Use the framework fedllm or kd for this model",
        )


def draws(part: nn.Module, run: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether a part in training mode uses a generator, or gives something else than in evaluation."""
    with scoped_rng(0, "probe"):
        before = _generators(expected.device)
        part.train()
        found = run()
        drew = not all(map(torch.equal, before, _generators(expected.device)))
    part.eval()
    return drew or not torch.equal(found, expected)


def _generators(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that a model on a device may use."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@torch.no_grad()
def load_values(state: State, tensors: Tensors) -> None:
    """Write values into a state's own parameters, which keep their optimiser."""
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
