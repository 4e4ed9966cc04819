"""The rows of a run in the tokens of its models, read before any weights.

How long texts may be follows from them; what is cut, and what is of no use, is counted.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from trillium.config.experiment import ExperimentConfig
from trillium.data.federated import FederatedData
from trillium.data.held_back import divided
from trillium.errors import UserError
from trillium.models.base import ModelConfig
from trillium.models.inputs import Inputs, read_inputs
from trillium.tasks import Example
from trillium.tasks.batches import MULTIPLE, padded

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)
MOST = 1024  # tokens, where `training.max_length` is left out
SHARE = 0.99  # of the texts that are not cut, where the others are far longer
FAR = 1.5
COUNTED = frozenset({"num_examples", "held_out", "texts", "truncated", "left_out"})  # of one table


@dataclass
class Texts:
    """Rows as examples, each table tokenised once for each tokenizer.

    Attributes:
        config: of the run; `training.max_length` is known once `fit` has been called.
        labels: class names; none for language modelling.
    """

    config: ExperimentConfig
    labels: Sequence[str]
    _inputs: list[tuple[ModelConfig, Inputs]] = field(default_factory=list)
    _whole: dict[tuple[int, int], tuple[Dataset, list[Example]]] = field(default_factory=dict)
    _cut: dict[tuple[int, int], list[Example]] = field(default_factory=dict)

    def inputs(self, model: ModelConfig) -> Inputs:
        """Return what a model takes."""
        for known, found in self._inputs:
            if known == model:
                return found
        found = read_inputs(model, self.labels, auto_class=self.config.task.auto_class)
        self._inputs.append((model, found))
        return found

    def fit(self, data: FederatedData) -> ExperimentConfig:
        """Return the configuration with the length that its texts need, if it names none.

        That of the longest text; where few are far longer than the others, that which 99 % of them do
        not exceed; at most 1,024 tokens, and what every model has positions for.
        """
        if self.config.training.max_length is not None:
            return self.config
        sides: list[tuple[str | None, Dataset]] = [(None, data.public), *data.clients.items()]
        lengths, room = Counter[int](), [MOST]
        tests: list[tuple[ModelConfig, Counter[int]]] = []  # as long as in the tokens of a model
        for name, rows in sides:
            own = self.config.of(name)
            known = [found for model, found in tests if model == own.model]
            if not known:
                known = [Counter(e.num_tokens for e in self._uncut(own.model, data.test))]
                tests.append((own.model, known[0]))
            lengths += known[0]
            lengths.update(e.num_tokens for e in self._uncut(own.model, rows))
            virtual, bound = own.adapter.virtual_tokens, self.inputs(own.model).positions
            if bound is not None:
                room.append((bound - virtual) // MULTIPLE * MULTIPLE)
                if room[-1] <= 0:
                    raise UserError(
                        f"adapter={own.adapter.name} with {virtual} virtual tokens",
                        f"the model has {bound} positions, so almost no position is left for text",
                        "Write fewer tokens for the adapter",
                    )
        self.config = self.config.with_length(min(needed(lengths), *room))
        return self.config

    def all_examples(self, model: ModelConfig, rows: Dataset) -> list[Example]:
        """Return one example for each row, cut to the length of the run."""
        whole, limit = self._uncut(model, rows), self.config.training.limit
        if all(example.num_tokens <= limit for example in whole):
            return whole
        tokenizer = self.inputs(model).tokenizer
        key = (id(tokenizer), id(rows))
        if key not in self._cut:
            self._cut[key] = self.config.task.tokenize(rows, tokenizer, limit, len(self.labels))
        return self._cut[key]

    def examples(self, model: ModelConfig, rows: Dataset) -> list[Example]:
        """Return those with something to predict, in their order."""
        return usable(self.config, self.all_examples(model, rows))

    def count(self, model: ModelConfig, rows: Dataset) -> dict[str, int]:
        """Return how many texts the rows make, are cut, and are left out for want of a prediction."""
        found = self.all_examples(model, rows)
        cut = sum(e.num_tokens > self.config.training.limit for e in self._uncut(model, rows))
        left_out = len(found) - len(usable(self.config, found))
        return {"texts": len(found), "truncated": cut, "left_out": left_out}

    def counted(self, data: FederatedData) -> FederatedData:
        """Return the data apart, with these counts, and without clients of which all would be left out.

        Raises:
            UserError: there is such a client, and `data.unusable` is to refuse it; or the test set, or
                everybody, is such.
        """
        data, model = self.apart(data), self.config.of(None).model
        counts = {"test": self.count(model, data.test)} if len(data.test) else {}
        if counts and not self.examples(model, data.test):
            raise self.useless("the test set", data.test)
        kept = {}
        for name, rows in data.clients.items():
            own = self.config.of(name).model
            if self.examples(own, rows) or not len(rows):
                kept[name], counts[name] = rows, self.count(own, rows)
                if name in data.held:
                    held_out = len(self.examples(own, data.held[name]))
                    counts[name] = {"held_out": held_out, **counts[name]}
            elif self.config.data.unusable == "refuse":
                raise self.useless(name, rows)
        if data.clients and not kept:
            raise self.useless("every client", next(iter(data.clients.values())))
        gone = [name for name in data.clients if name not in kept]
        return replace(data, clients=kept, counts=counts, useless=tuple(gone))

    def divided(self, name: str, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Return what a client trains on, and what it holds back to measure on."""
        config = self.config
        if config.evaluation.where == "server":
            return rows, rows.select([])
        seed = config.seed if config.data.split_seed is None else config.data.split_seed
        return divided(rows, config.evaluation.held_back, seed, name)

    def apart(self, data: FederatedData) -> FederatedData:
        """Return the data with the rows that clients hold back apart, if they measure models."""
        if self.config.evaluation.where == "server":
            return data
        both = {name: self.divided(name, rows) for name, rows in data.clients.items()}
        clients = {name: own for name, (own, _) in both.items()}
        return replace(data, clients=clients, held={name: held for name, (_, held) in both.items()})

    def useless(self, whose: str, rows: Dataset) -> UserError:
        """Return why a table teaches or measures nothing."""
        cut = self.config.training.limit
        return UserError(
            f"the rows of {whose} ({len(rows)})",
            f"none has a token to learn or to predict: their answers are empty, or end up behind the "
            f"{cut} tokens that are kept",
            "Write a longer training.max_length, look at the columns that are named, or leave such "
            "clients out with data.unusable=leave_out",
            code="useless",
        )

    def _uncut(self, model: ModelConfig, rows: Dataset) -> list[Example]:
        tokenizer = self.inputs(model).tokenizer
        key = (id(tokenizer), id(rows))
        if key not in self._whole:
            if self.inputs(model).may_lose:
                _check_known(self.inputs(model), model, rows)
            whole = self.config.task.tokenize(rows, tokenizer, None, len(self.labels))
            self._whole[key] = (rows, whole)
            _check_tokens(tokenizer, model, rows, whole)
        return self._whole[key][1]


def _check_known(inputs: Inputs, model: ModelConfig, rows: Dataset) -> None:
    """Refuse rows of which a tokenizer would leave something out.

    Raises:
        UserError: some word has no token, and there is none for unknown ones.
    """
    lost = [
        number
        for number, row in enumerate(rows, start=1)
        if any(
            inputs.loses(text) for text in texts_in({k: v for k, v in row.items() if k != "row"})
        )
    ]
    if lost:
        raise UserError(
            f"the tokenizer of model.id={model.id}",
            f"it has no token for some words of {len(lost)} of {len(rows)} texts, the first in row "
            f"{lost[0]}, and none for unknown words: they would be lost",
            "Set tokenizer.unk_token, save the tokenizer beside the model, and name that folder",
        )


def _check_tokens(
    tokenizer: Any, model: ModelConfig, rows: Dataset, examples: Sequence[Example]
) -> None:
    """Refuse texts of which a tokenizer makes nothing but begin and end.

    Raises:
        UserError: with their number, and the first row; blank ones do not count.
    """
    # An unknown word is a token: a text of one emoji is no fault of the tokenizer.
    ends = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep")}
    bare = [n for n, e in enumerate(examples) if ends.issuperset(e.input_ids.tolist())]
    if bare and len(examples) == len(rows):
        bare = [n for n in bare if any(text.strip() for text in _said(rows[n]))]
    if bare:
        raise UserError(
            f"the tokenizer of model.id={model.id}",
            f"it makes no token of {len(bare)} of {len(examples)} texts, the first in row {bare[0] + 1}"
            ": nothing but their begin and end would be learnt",
            "Save the tokenizer that belongs to the model beside it, and name that folder",
        )


def _said(row: Mapping[str, Any]) -> Iterator[str]:
    return texts_in({key: value for key, value in row.items() if key not in ("row", "label")})


def in_model_order(config: ExperimentConfig, data: FederatedData) -> FederatedData:
    """Return the data with its classes in the order of the checkpoint, if it has all of them."""
    own = config.of(None)
    inputs = read_inputs(own.model, data.labels, own.adapter.goes_on_from, config.task.auto_class)
    if not inputs.classes:
        return data
    whose = "checkpoint" if inputs.onward is None or inputs.onward.key is None else "adapter"
    if inputs.order is None:
        names = ", ".join(inputs.classes[:3]) + " …" * (len(inputs.classes) > 3)
        head = (
            f"The last layer of the task head is new: the {whose}'s classes are others ({names})."
        )
        return replace(data, head=head)
    place = dict(zip(data.labels, inputs.order, strict=True))
    head = f"The task head is that of the {whose}, which has these classes by name."
    if not inputs.named:
        head = (
            "The task head is that of the adapter, which does not name its classes. They are taken "
            f"to be, in this order: {', '.join(data.labels[:8])}{' …' * (len(data.labels) > 8)}."
        )
    ordered = data.in_order(sorted(data.labels, key=place.__getitem__))
    return replace(ordered, head=head, own_head=True)


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text of a tree."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)


def needed(lengths: Mapping[int, int]) -> int:
    """Return how many tokens are to be kept of texts, of which there are so many of each length."""
    ordered = sorted(lengths) or [MOST]
    before = list(accumulate(lengths[length] for length in ordered)) if lengths else [1]
    most = ordered[bisect_right(before, min(int(SHARE * before[-1]), before[-1] - 1))]
    return padded(ordered[-1] if ordered[-1] <= FAR * most else most)


def usable(config: ExperimentConfig, examples: Sequence[Example]) -> list[Example]:
    """Return the examples of which something is to be predicted, numbered in their order."""
    found = [e for e in examples if e.num_tokens and config.task.num_targets(e)]
    if len(found) == len(examples):
        return list(examples)
    return [replace(example, index=index) for index, example in enumerate(found)]
