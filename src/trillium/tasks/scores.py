"""How near texts come to what was meant."""

from __future__ import annotations

from collections.abc import Sequence

TEXT_SCORES = ("exact_match", "chrf", "bleu", "rouge_l")


def text_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the measures of texts, each with its reference; texts with an empty one are left out.

    `exact_match` is a share; the others go from 0 to 100: chrF (Popović, 2015, W15-3049) and BLEU
    (Papineni et al., 2002, P02-1040) of all texts together, by sacreBLEU with its defaults (Post, 2018,
    arXiv 1804.08771), and the mean F-measure of ROUGE-L (Lin, 2004, W04-1013), by Google's rouge-score
    without stemming, which sees Latin letters and digits alone.
    """
    # Imported here: who answers no prompts need not wait for them.
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    known = [(said, meant) for said, meant in pairs if meant]
    if not known:
        return dict.fromkeys(TEXT_SCORES, 0.0)
    said, meant = zip(*known, strict=True)
    scorer = RougeScorer(["rougeL"])
    shares = [scorer.score(target, text)["rougeL"].fmeasure for text, target in known]
    return {
        "exact_match": sum(text == target for text, target in known) / len(known),
        "chrf": sacrebleu.corpus_chrf(said, [meant]).score,
        "bleu": sacrebleu.corpus_bleu(said, [meant]).score,
        "rouge_l": 100 * sum(shares) / len(shares),
    }
