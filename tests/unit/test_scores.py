"""Measures of texts against sums that are done by hand."""

from __future__ import annotations

import pytest

from trillium.tasks.scores import TEXT_SCORES, text_scores


def test_texts_that_are_right_and_wrong() -> None:
    right = text_scores([("the cat sat on the mat", "the cat sat on the mat")])
    assert list(right) == list(TEXT_SCORES)
    assert right == pytest.approx({"exact_match": 1, "chrf": 100, "bleu": 100, "rouge_l": 100})
    wrong = text_scores([("zzz yyy", "abc def")])
    assert wrong == pytest.approx({"exact_match": 0, "chrf": 0, "bleu": 0, "rouge_l": 0})


def test_shares_of_words_and_characters() -> None:
    found = text_scores([("a b c d e f", "a b c d x f")])
    # Of 6, 5, 4 and 3 runs of so many words 5, 3, 2 and 1 are right, and both are of one length.
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert found["rouge_l"] == pytest.approx(100 * 5 / 6)
    # Of 3, 2 and 1 runs of characters 2, 1 and 0; there are no longer ones.
    assert text_scores([("abc", "abd")])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_bleu_is_of_all_texts_together_and_rouge_their_mean() -> None:
    pairs = [("a b c d", "a b c d"), ("q r s t u v w x y z", "a b c d e f g h i j")]
    found = text_scores(pairs)
    assert found["exact_match"] == 0.5
    assert found["rouge_l"] == pytest.approx(50)
    hits, runs = (4, 3, 2, 1), (14, 12, 10, 8)
    product = 1.0
    for hit, run in zip(hits, runs, strict=True):
        product *= hit / run
    assert found["bleu"] == pytest.approx(100 * product**0.25)


def test_a_text_without_a_reference_is_left_out() -> None:
    assert text_scores([("a b c d", "a b c d"), ("x", "")])["exact_match"] == 1
    assert set(text_scores([("x", "")]).values()) == {0.0}
