"""Requests to a customer service, generated: a data set that needs no network and no files.

The test split says what the training split says in other words. Requests mention other matters in
passing and hold spelling mistakes. So counting words does badly and a pre-trained encoder well.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from trillium.data.requests import Intent, Words, load_grammar
from trillium.data.sources import RawData, Source

if TYPE_CHECKING:
    from datasets import Dataset

VALIDATION: Final = slice(
    2, None, 3
)  # of an intent's phrasings in training rows: plain ones, and odd ones


class Builtin(Source, name="builtin"):
    """Generate requests of bank, shop and phone customers, each with one of 38 intents.

    For `causal_lm` the completion names the intent and what fills the slots of the request:
    `intent: charged_twice | shop: Norda`. For `preference` that is chosen, and what names another
    request is rejected.

    Attributes:
        num_train: number of training rows; intents are equally frequent, give or take one row.
        num_test: number of test rows, in phrasings that the training rows do not have.
        asides: share of requests that also mention a settled matter of another kind.
        typos: share of words with a spelling mistake; slots have none.
        held_out: what is measured by: `test`, or `validation`, to choose settings. That has phrasings
            which are then left out of the training rows, so that nothing is chosen by test rows.
    """

    forms: ClassVar[frozenset[str]] = frozenset({"classification", "causal_lm", "preference"})

    num_train: int = Field(default=2000, ge=1, le=50_000)
    num_test: int = Field(default=800, ge=1, le=50_000)
    asides: float = Field(default=0.3, ge=0, le=1)
    typos: float = Field(default=0.02, ge=0, le=1)
    held_out: Literal["test", "validation"] = "test"

    def load(self, task: str, seed: int) -> RawData:
        """Return generated rows; no text occurs twice, within a split or across both."""
        taken: set[str] = set()
        train = self._generate("train", self.num_train, task, seed, taken)
        test = self._generate("test", self.num_test, task, seed, taken)
        names = tuple(intent.name for intent in load_grammar()[0])
        return RawData(train, test, names if task == "classification" else ())

    def _generate(self, split: str, num: int, task: str, seed: int, taken: set[str]) -> Dataset:
        from datasets import Dataset

        num_intents = len(load_grammar()[0])
        # A string seeds the same stream in every process; a tuple's hash would not.
        rng = random.Random(f"builtin/{split}/{seed}")
        labels = [row % num_intents for row in range(num)]
        rng.shuffle(labels)
        requests, answers = [], []
        for label in labels:
            request, answer = self._write(label, split, rng)
            while request.casefold() in taken:
                request, answer = self._write(label, split, rng)
            taken.add(request.casefold())
            requests.append(request)
            answers.append(answer)
        if task == "classification":
            return Dataset.from_dict({"text": requests, "label": labels})
        if task == "preference":
            others = answers[1:] + answers[:1]
            return Dataset.from_dict({"prompt": requests, "chosen": answers, "rejected": others})
        return Dataset.from_dict({"prompt": requests, "completion": answers})

    def _phrasings(self, intent: Intent, split: str) -> Sequence[str]:
        if self.held_out == "test":
            return intent.phrasings[split]
        chosen = intent.phrasings["train"][VALIDATION]
        if split == "test":
            return chosen
        return [phrasing for phrasing in intent.phrasings["train"] if phrasing not in chosen]

    def _write(self, label: int, split: str, rng: random.Random) -> tuple[str, str]:
        intents, words = load_grammar()
        intent = intents[label]
        core = text = _choose(rng.choice(self._phrasings(intent, split)), rng)
        if rng.random() < self.asides:
            # An aside of the same area could contradict the request.
            other = rng.choice([each for each in intents if each.area != intent.area])
            aside = rng.choice(other.asides)
            if rng.random() < 0.5:
                text = f"{rng.choice(words.before).replace('{aside}', aside)} {core}"
            else:
                text = f"{core}, {rng.choice(words.after).replace('{aside}', aside)}"
        elif rng.random() < 0.5:
            text = f"{rng.choice(words.openers)} {core}"
        text = text.lower() if rng.random() < 0.2 else text[0].upper() + text[1:]
        text = " ".join(
            _misspell(word, rng) if rng.random() < self.typos else word for word in text.split()
        )
        text += rng.choice((".", "?", ""))
        if rng.random() < 0.25:
            text = f"{text} {rng.choice(words.closers)}"
        values = {slot: _fill(slot, words, rng) for slot in _SLOT.findall(core)}
        answer = {"intent": intent.name, **values}
        return (
            _SLOT.sub(lambda match: values[match[1]], text),
            " | ".join(f"{key}: {value}" for key, value in answer.items()),
        )


_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")


def _choose(template: str, rng: random.Random) -> str:
    """Settle every `(a|b)` of a template."""
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return " ".join(text.split())


def _fill(slot: str, words: Words, rng: random.Random) -> str:
    return re.sub(r"\{n\}", lambda _: str(rng.randint(12, 950)), rng.choice(words.slots[slot]))


def _misspell(word: str, rng: random.Random) -> str:
    """Swap, drop, double or replace one letter; leave slots and short words alone."""
    if "{" in word or len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice(ascii_lowercase) + word[at + 1 :],
        )
    )
