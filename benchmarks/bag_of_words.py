"""The reference without a language model: TF-IDF of words and word pairs, and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

Texts = Sequence[str]
Labels = Sequence[int] | Sequence[str]


def bag_of_words(train: tuple[Texts, Labels], test: tuple[Texts, Labels]) -> dict[str, float]:
    """Train on all rows in one place and return accuracy and macro F1 on the test rows."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC(random_state=0)
    )
    model.fit(*train)
    return scores(test[1], model.predict(test[0]))


def scores(expected: Labels, predicted: Labels) -> dict[str, float]:
    """Return accuracy and macro F1."""
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "f1": float(f1_score(expected, predicted, average="macro")),
    }
