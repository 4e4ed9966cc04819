"""Token classification: a tag for each word, such as the names of people and places in a text.

Words become tokens by their places in the text; the first token of a word bears its tag, and only such
tokens count. Training minimises their cross-entropy, as Transformers does; soft labels are a
distribution over the tags for each of them, heads in closed form are solved from them, and a client's
weight is their number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from trillium.errors import UserError
from trillium.tasks import IGNORE, Example, Task, View

if TYPE_CHECKING:
    from datasets import Dataset

UNKNOWN: Final = -1  # the tag of a token that counts, and of which nobody says what it is
WORD: Final = re.compile(r"\w+|[^\w\s]")  # where nobody says what the words are


class TokenClassification(Task, name="token_classification"):
    """Predict the tag of each word; the head is the model's own, on every token.

    Metrics: `entity_f1`, `entity_precision` and `entity_recall`, of whole entities by seqeval, with
    tags of the IOB2 form (`B-PER`, `I-PER`, `O`); other tags but `O` are entities as long as they go
    on; `token_accuracy`, the share of words whose tag is right; and `loss` (mean over words, nats).
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_task: ClassVar[str] = "TOKEN_CLS"
    data_form: ClassVar[str] = "token_classification"
    per_token: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    tallied: ClassVar[Mapping[str, bool]] = dict.fromkeys(
        ("loss", "words", "token_hits", "hits", "said", "meant"), False
    )

    @property
    def measure(self) -> str:
        """F1 of entities."""
        return "entity_f1"

    def tokenize(
        self, rows: Dataset, tokenizer: Any, max_length: int | None, num_outputs: int = 0
    ) -> list[Example]:
        """Tokenise `text`, in which `words` are places, else all words and marks; `label` are tags."""
        if not len(rows):
            return []
        if not tokenizer.is_fast:
            raise UserError(
                f"task={self.name} with {type(tokenizer).__name__}",
                "it does not tell where in a text its tokens are",
                "Choose a model with a fast tokenizer, which has a tokenizer.json",
            )
        texts = rows["text"][:]
        words = rows["words"][:] if "words" in rows.column_names else [*map(words_in, texts)]
        tags = [[UNKNOWN] * len(own) for own in words]
        if "label" in rows.column_names:
            tags = rows["label"][:]
        options = {"truncation": max_length is not None, "max_length": max_length}
        found = tokenizer(texts, **options, return_offsets_mapping=True, verbose=False)
        pairs = zip(found["input_ids"], found["offset_mapping"], words, tags, strict=True)
        return [_example(index, *each) for index, each in enumerate(pairs)]

    def unlabelled(self, example: Example) -> Example:
        """Return it with unknown tags."""
        labels = example.labels.clamp(max=UNKNOWN)
        return replace(example, labels=labels)

    def select(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first token of each word."""
        counted = labels != IGNORE
        targets = labels[counted]
        return logits[counted], targets.where(targets >= 0, IGNORE)

    def num_supervised(self, labels: Tensor) -> int:
        """All words, also those of which nobody knows the tag."""
        return int((labels != IGNORE).sum())

    def num_targets(self, example: Example) -> int:
        """Its words."""
        return self.num_supervised(example.labels)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Return the loss, how many words there are, how many hits, and how entities agree."""
        labels, names = view.labels, view.names
        found, entities_of = view.output.argmax(-1), [(0, 0, 0)]
        for said, meant in zip(found, labels, strict=True):
            own, tags = said[meant != IGNORE], meant[meant != IGNORE]
            if not isinstance(own, FakeTensor):  # on paper there is nothing to be said
                pair = ([names[n] for n in own.tolist()], [names[n] for n in tags.tolist()])
                entities_of.append(entity_counts(*pair))
        counts = torch.tensor(entities_of, dtype=torch.float64).sum(0, keepdim=True)
        hits, said_, meant_ = counts.unbind(1)
        return {
            "loss": self.loss(view.output, labels)[0].double()[None],
            "words": (labels != IGNORE).sum().double()[None],
            "token_hits": ((found == labels) & (labels != IGNORE)).sum().double()[None],
            "hits": hits,
            "said": said_,
            "meant": meant_,
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how good entities and tags are, and the loss."""
        if not (count := float(sums["words"])):
            raise UserError(
                "no word is held out", "nothing can be measured", "Name some rows with --data FILE"
            )
        return {
            **entity_scores(float(sums["hits"]), float(sums["said"]), float(sums["meant"])),
            "token_accuracy": float(sums["token_hits"]) / count,
            "loss": float(sums["loss"]) / count,
            "num_examples": int(sums["num_examples"]),
        }

    def said(
        self, logits: Tensor, example: Example, labels: Sequence[str], text: str
    ) -> dict[str, Any]:
        """Return the entities with their places in the text, and how sure their tags are on average."""
        shares = logits[: example.num_tokens][example.labels != IGNORE].double().softmax(-1)
        sure, numbers = shares.max(-1)
        found = []
        for kind, first, last in entities([labels[n] for n in numbers.tolist()]):
            start, end = example.words[first][0], example.words[last][1]
            score = float(sure[first : last + 1].mean())
            found.append(
                {"label": kind, "text": text[start:end], "start": start, "end": end, "score": score}
            )
        return {"entities": found}


def words_in(text: str) -> list[tuple[int, int]]:
    """Return where words and marks stand in a text."""
    return [match.span() for match in WORD.finditer(text)]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return kind, first and last place of each entity in the tags of a text."""
    # Imported here: the config tree imports this module, and must not wait for the library.
    from seqeval.metrics.sequence_labeling import get_entities

    found: list[tuple[str, int, int]] = get_entities(_prefixed(tags))
    return found


def entity_counts(said: Sequence[str], meant: Sequence[str]) -> tuple[int, int, int]:
    """Return how many entities are in both of two lists of tags, and in each."""
    found, wanted = {*entities(said)}, {*entities(meant)}
    return len(found & wanted), len(found), len(wanted)


def entity_scores(hits: float, said: float, meant: float) -> dict[str, float]:
    """Return F1, precision and recall of entities by their counts, 0 where there are none."""
    return {
        "entity_f1": 2 * hits / max(said + meant, 1),
        "entity_precision": hits / max(said, 1),
        "entity_recall": hits / max(meant, 1),
    }


def _prefixed(tags: Sequence[str]) -> list[str]:
    """Return tags as seqeval reads them: those without a prefix go on as long as they are the same."""
    return [
        tag if tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") else f"I-{tag}" for tag in tags
    ]


def _example(
    index: int,
    tokens: Sequence[int],
    places: Sequence[tuple[int, int]],
    words: Sequence[Sequence[int]],
    tags: Sequence[int],
) -> Example:
    """Return a text whose words bear their tags at the token in which they begin.

    A word that begins in no token of its own, or behind the last, counts for nothing.
    """
    labels, kept, at = torch.full((len(tokens),), IGNORE), [], 0
    for (start, end), tag in zip(words, tags, strict=True):
        while at < len(places) and places[at][1] <= start:  # those of special tokens are empty
            at += 1
        if at < len(places) and places[at][0] < end and labels[at] == IGNORE:
            labels[at] = tag
            kept.append((start, end))
    return Example(index, torch.tensor(tokens), labels, words=tuple(kept))
