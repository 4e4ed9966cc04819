"""The built-in requests: varied, consistent, and not to be solved by counting words."""

import re
from collections import Counter

import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from trillium.data.requests import load_grammar
from trillium.data.sources.builtin import Builtin

INTENTS, WORDS = load_grammar()
PHRASINGS = [
    (intent, split, phrasing)
    for intent in INTENTS
    for split, phrasings in intent.phrasings.items()
    for phrasing in phrasings
]


@pytest.fixture(scope="module")
def splits() -> tuple[Dataset, Dataset]:
    raw = Builtin().load("classification", 0)
    assert raw.test is not None
    return raw.train, raw.test


def bag_of_words_accuracy(train: Dataset, test: Dataset) -> float:
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    model.fit(list(train["text"]), list(train["label"]))
    return float(model.score(list(test["text"]), list(test["label"])))


def test_counting_words_does_badly_on_held_out_phrasings(splits: tuple[Dataset, Dataset]) -> None:
    train, test = splits
    accuracy = bag_of_words_accuracy(train.select(range(1600)), test)
    assert 0.5 < accuracy < 0.7  # guessing gives 0.03


def test_counting_words_does_well_on_phrasings_it_has_seen(
    splits: tuple[Dataset, Dataset],
) -> None:
    """Negative control: what the bound above catches is the held-out phrasing, not the noise."""
    train, _ = splits
    accuracy = bag_of_words_accuracy(train.select(range(1600)), train.select(range(1600, 2000)))
    assert accuracy > 0.9


def test_no_phrasing_stands_in_two_places() -> None:
    counts = Counter(phrasing.casefold() for _, _, phrasing in PHRASINGS)
    assert counts.most_common(1)[0][1] == 1


def test_every_intent_has_its_phrasings_and_asides() -> None:
    assert len(INTENTS) == len({intent.name for intent in INTENTS}) == 38
    for intent in INTENTS:
        assert len(intent.phrasings["train"]) >= 8
        assert len(intent.phrasings["test"]) >= 4
        assert len(intent.asides) >= 2


def test_notation_is_well_formed() -> None:
    for intent, _, phrasing in PHRASINGS:
        slots = re.findall(r"\{(.*?)\}", phrasing)
        assert set(slots) <= set(WORDS.slots), f"{intent.name}: {phrasing}"
        assert len(slots) == len(set(slots)), f"one value per slot: {phrasing}"
        rest = re.sub(r"\([^()]*\|[^()]*\)|\{\w+\}", "", phrasing)
        assert not set(rest) & set("(){}|"), f"{intent.name}: {phrasing}"
    for intent in INTENTS:
        assert not any(set(aside) & set("(){}|") for aside in intent.asides)


def test_texts_are_unique_short_and_filled(splits: tuple[Dataset, Dataset]) -> None:
    texts = [text for rows in splits for text in rows["text"]]
    assert len({text.casefold() for text in texts}) == 2800
    assert not any(set(text) & set("{}|") for text in texts)
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[140] >= 5
    assert lengths[-140] <= 28


def test_intents_are_equally_frequent(splits: tuple[Dataset, Dataset]) -> None:
    for rows in splits:
        counts = Counter(rows["label"])
        assert set(counts) == set(range(38))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_the_same_seed_gives_the_same_rows() -> None:
    small = Builtin(num_train=50, num_test=20)
    first, again, other = (small.load("classification", seed).train for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)


def test_the_answer_follows_from_the_request() -> None:
    raw = Builtin(num_train=500, num_test=50).load("causal_lm", 0)
    names = {intent.name for intent in INTENTS}
    assert raw.labels == ()
    for row in raw.train:
        head, *slots = row["completion"].split(" | ")
        assert head.removeprefix("intent: ") in names
        for slot in slots:
            key, value = slot.split(": ", 1)
            assert key in WORDS.slots
            assert value in row["prompt"]


def test_both_tasks_tell_of_the_same_requests() -> None:
    small = Builtin(num_train=60, num_test=20)
    labelled = small.load("classification", 4)
    answered = small.load("causal_lm", 4).train
    assert list(labelled.train["text"]) == list(answered["prompt"])
    for label, completion in zip(labelled.train["label"], answered["completion"], strict=True):
        assert completion.split(" | ")[0] == f"intent: {labelled.labels[label]}"


def test_asides_and_typos_can_be_turned_off() -> None:
    plain = Builtin(num_train=400, num_test=1, asides=0, typos=0).load("classification", 0).train
    noisy = Builtin(num_train=400, num_test=1, asides=1, typos=0).load("classification", 0).train
    asides = [aside.casefold() for intent in INTENTS for aside in intent.asides]

    def share(rows: Dataset) -> float:
        return sum(any(a in text.casefold() for a in asides) for text in rows["text"]) / len(rows)

    assert share(plain) == 0
    assert share(noisy) == 1


def test_settings_can_be_chosen_without_a_look_at_the_test_rows() -> None:
    """The rows to choose by have phrasings of their own, which no other rows then have."""
    chosen = Builtin(held_out="validation", asides=0, typos=0).load("classification", 0)
    whole = Builtin(asides=0, typos=0).load("classification", 0)
    assert chosen.test is not None
    assert whole.test is not None
    assert not {*chosen.test["text"]} & {*whole.test["text"]}
    assert 0.3 < bag_of_words_accuracy(chosen.train, chosen.test) < 0.6
    for intent in INTENTS:
        known = {*Builtin(held_out="validation")._phrasings(intent, "train")}
        held = {*Builtin(held_out="validation")._phrasings(intent, "test")}
        assert not known & held
        assert known | held == {*intent.phrasings["train"]}
