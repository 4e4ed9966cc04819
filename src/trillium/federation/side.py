"""What client and server have in common: a model, a task, data to look at, a place in the run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trillium.models.folds import Fold, whole_fold
from trillium.models.known import Known
from trillium.models.load import LanguageModel
from trillium.models.slots import State
from trillium.rng import generator
from trillium.tasks import Example, Task
from trillium.training.loop import Loop
from trillium.training.meters import Meter, resident_tensors
from trillium.training.settings import Training
from trillium.wire.kinds import Tensors

Metrics = dict[str, Any]


@dataclass(kw_only=True)
class Side:
    """One side of a federation.

    Attributes:
        model: the resident model; shared by all sides of a simulation, never written.
        store: what the framework keeps here from one round to the next. Tensors and plain values
            only (numbers, strings, lists, dicts, state dicts): it is what a checkpoint holds.
        scratch: what it keeps within a round; any object.
        round: the current round; 0 before the first.
    """

    name: str
    model: LanguageModel
    task: Task
    test: list[Example]
    training: Training
    meter: Meter
    seed: int
    num_rounds: int
    store: dict[str, Any] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    round: int = 0
    _known: Known | None = field(init=False, default=None)

    @property
    def initial(self) -> Tensors:
        """The trainable values that all sides start from: as loaded, with a head solved since."""
        head: Tensors = self.store.get("head", {})
        return {**self.model.initial, **head}

    @property
    def base(self) -> Tensors:
        """Frozen weights that the run has changed, by name; empty unless an aggregator folds."""
        found: Tensors = self.store.get("base", {})
        return found

    @property
    def folds(self) -> Sequence[Fold]:
        """What the run has added to base weights, as an adapter can hold it."""
        model = self.model
        return [whole_fold(self.base, model.factors, model.base)] if self.base else []

    def generator(self, purpose: str) -> torch.Generator:
        """Return a generator for one purpose of this side in this round."""
        return generator(self.seed, purpose, self.name, self.round)

    def secret(self, purpose: str) -> bytes:
        """Return a key for one purpose of this side in this round, which nobody else can compute.

        It comes of 256 bits of the operating system's, not of the run's seed, which all sides know.
        They are kept with the state of the side, so that a run that is resumed goes on with the same.
        """
        return self.lasting(f"{purpose}/{self.name}/{self.round}")

    def lasting(self, purpose: str) -> bytes:
        """Return such a key that is the same in all rounds."""
        own = bytes.fromhex(self.store.setdefault("secret", new_secret()))
        return hashlib.blake2b(purpose.encode(), key=own, digest_size=32).digest()

    def progress(self, fraction: float) -> float:
        """Return how far the run is, from 0 to 1, at a fraction of this round."""
        return (max(self.round, 1) - 1 + fraction) / self.num_rounds

    def tokenize(self, columns: Mapping[str, Sequence[Any]]) -> list[Example]:
        """Return rows in the columns of the task as examples, in the tokens of the model."""
        # Imported here: this module is part of the config tree, which must not wait for the library.
        from datasets import Dataset

        rows = Dataset.from_dict(dict(columns))
        model, limit = self.model, self.training.limit
        return self.task.tokenize(rows, model.tokenizer, limit, model.num_classes)

    def loop(self, label: str, state: State) -> Loop:
        """Return the local loop over a state, mounted into the model."""
        module = self.model.mount(state, self.base)
        pad_id = self.model.tokenizer.pad_token_id
        device, meter = self.model.device, self.meter
        task, training = self.task, self.training
        return Loop(module, state, pad_id, device, meter, label, task, training, known=self.known)

    def known(self, examples: Sequence[Example]) -> list[Example]:
        """Return examples with what the model's first blocks make of them, where that is kept.

        What is in the store has been paid for: a run that is resumed computes it again at no cost.
        """
        first, training = self.model.first, self.training
        if first is None or not training.keeps:
            return list(examples)
        log = self.store.setdefault("known", [])
        if self._known is None or self._known.log is not log:
            self._known = training.known(first, log)

        def run(ids: Tensor) -> Tensor:
            key = ("first blocks", tuple(ids.shape), bool((ids < 0).any()), first.number)
            resident = partial(resident_tensors, first.module)
            return self.meter.run(key, partial(first.run, ids), resident)

        return self._known.of(examples, run)

    def known_tests(self) -> list[Example]:
        """Return the held-out data in the same way; what it takes to look at a model nobody counts."""
        first, training = self.model.first, self.training
        if first is None or not training.keeps:
            return self.test
        if self.model.tests is None:
            self.model.tests = training.known(first, [])
        return self.model.tests.of(self.test, first.run)

    def evaluate(self, state: State, batch_tokens: int) -> Metrics:
        """Return the metrics of a state on the held-out data."""
        module = self.model.mount(state, self.base).eval()
        return dict(
            self.task.evaluate(module, self.known_tests(), self.model.tokenizer, batch_tokens)
        )

    def answers(self, state: State, batch_tokens: int) -> dict[str, Any]:
        """Return what a report shows of the answers of a state to the held-out data."""
        module = self.model.mount(state, self.base).eval()
        return self.task.answers(module, self.known_tests(), self.model.tokenizer, batch_tokens)


def new_secret() -> str:
    """Return 256 bits of the operating system's, as `Side.store` keeps them."""
    return os.urandom(32).hex()
