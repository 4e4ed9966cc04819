"""Measures of how good a model is: of what is shipped, and over the clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import stdev

from trillium.report import human
from trillium.report.measure import MAIN, Measure, Show
from trillium.report.read import Run, number


def _shipped(name: str, short: str, title: str, meaning: str, show: Show = human.plain) -> Measure:
    """A measure of the model that is shipped, by the name of its metric."""
    return Measure(name, short, title, meaning, lambda run: run.shipped(name), show)


def client_values(run: Run, metric: str) -> list[tuple[float, float]]:
    """Return a metric of each client with its held-out rows, at the kept round or the last that has it.

    It is that of the client's own model, or of the shared one on the client's rows. Where nothing is
    said of rows, all have as many.
    """
    for line in [*reversed(run.kept), *reversed(run.evaluations)]:
        clients = (line.get("clients") or {}).values()
        found = [(number(own.get(metric)), number(own.get("num_examples"))) for own in clients]
        if known := [(value, rows or 1.0) for value, rows in found if value is not None]:
            return known
    return []


def _mean(values: Sequence[tuple[float, float]]) -> float:
    total = sum(rows for _, rows in values)
    return sum(value * rows for value, rows in values) / total


def _least(values: Sequence[tuple[float, float]]) -> float:
    return min(value for value, _ in values)


def _spread(values: Sequence[tuple[float, float]]) -> float | None:
    return stdev(value for value, _ in values) if len(values) > 1 else None


def _over_clients(
    metric: str, of: Callable[[Sequence[tuple[float, float]]], float | None] = _mean
) -> Callable[[Run], float | None]:
    """A metric over the clients: by default its mean, weighted by their held-out rows."""

    def measure(run: Run) -> float | None:
        values = client_values(run, metric)
        return of(values) if values else None

    return measure


def _finetuned(of: Measure) -> Measure:
    """A measure of quality after clients have fine-tuned ends of their own."""

    def after(run: Run) -> float | None:
        return number((run.finetuned.get("after") or {}).get(of.name))

    return Measure(
        f"finetuned_{of.name}",
        f"Own ends' {of.short}",
        f"{of.title} after fine-tuning at the clients",
        "The same over all clients' held-out rows, each client's with the model that it has fine-tuned "
        "for itself after the last round (finetune.local_steps).",
        after,
        of.show,
    )


def _at_clients(of: Measure) -> tuple[Measure, ...]:
    """A measure of quality over the clients: weighted mean, worst client, and spread."""
    what = f"{of.title} over the clients' held-out rows"
    whose = "of each client's own model, or of the shared one where clients measure it"
    return (
        Measure(
            f"clients_{of.name}",
            f"Clients' {of.short}",
            what,
            f"Mean over the clients, weighted by their held-out rows, {whose}.",
            _over_clients(of.name),
            of.show,
        ),
        Measure(
            f"clients_{of.name}_min",
            "Worst client",
            f"{what}, worst client",
            f"The least of any client, {whose}.",
            _over_clients(of.name, _least),
            of.show,
        ),
        Measure(
            f"clients_{of.name}_sd",
            "Spread",
            f"{what}, spread",
            f"Standard deviation over the clients, each counted once, {whose}.",
            _over_clients(of.name, _spread),
            of.show,
        ),
    )


_SHIPPED = (
    _shipped(
        "accuracy",
        "Accuracy",
        "Accuracy",
        "Share of held-out examples that the model which would be shipped gets right, "
        "at the last evaluation.",
        human.percent,
    ),
    _shipped(
        "f1",
        "F1",
        "F1 (macro)",
        "Harmonic mean of precision and recall on the held-out examples, averaged over the labels.",
        human.percent,
    ),
    _shipped(
        "f1_micro",
        "Micro F1",
        "F1 (micro)",
        "Harmonic mean of precision and recall over all labels of all held-out texts.",
        human.percent,
    ),
    _shipped(
        "f1_macro",
        "Macro F1",
        "F1 (macro)",
        "The same of each label that a held-out text has or is given, averaged over the labels.",
        human.percent,
    ),
    _shipped(
        "pearson",
        "Pearson",
        "Pearson's correlation",
        "Correlation of what is said of held-out texts with what is so; of several numbers the mean.",
    ),
    _shipped(
        "spearman",
        "Spearman",
        "Spearman's correlation",
        "The same of their ranks.",
    ),
    _shipped(
        "rmse",
        "RMSE",
        "Root mean squared error",
        "Of what is said of held-out texts; of several numbers the mean; lower is better.",
    ),
    *(
        _shipped(
            f"entity_{name}",
            f"Entity {short}",
            f"{title} of entities",
            f"{title} of whole entities in held-out texts: kind, first and last word agree (seqeval).",
            human.percent,
        )
        for name, short, title in (
            ("f1", "F1", "F1"),
            ("precision", "prec.", "Precision"),
            ("recall", "rec.", "Recall"),
        )
    ),
    _shipped(
        "exact_match",
        "Exact match",
        "Exact match",
        "Share of held-out examples whose generated answer equals the reference.",
        human.percent,
    ),
    _shipped(
        "chrf",
        "chrF",
        "chrF",
        "Overlap of characters of generated answers with their references, from 0 to 100.",
    ),
    _shipped(
        "bleu",
        "BLEU",
        "BLEU",
        "Overlap of words of generated answers with their references, from 0 to 100.",
    ),
    _shipped(
        "rouge_l",
        "ROUGE-L",
        "ROUGE-L",
        "Longest common subsequence of words of generated answers and their references, from 0 to 100.",
    ),
    _shipped(
        "perplexity",
        "Perplexity",
        "Perplexity",
        "Exponential of the mean loss per token on held-out text; lower is better.",
    ),
    _shipped(
        "token_accuracy",
        "Token acc.",
        "Token accuracy",
        "Share of held-out tokens that the model predicts right, or of words whose tag is right.",
        human.percent,
    ),
    _shipped(
        "reward_accuracy",
        "Reward acc.",
        "Reward accuracy",
        "Share of held-out pairs whose chosen answer has gained more over the reference than the "
        "rejected one.",
        human.percent,
    ),
    _shipped(
        "reward_margin",
        "Margin",
        "Reward margin",
        "By how much more the chosen answer has gained than the rejected one: the mean over held-out "
        "pairs, in nats times beta.",
    ),
    _shipped(
        "loss",
        "Loss",
        "Loss",
        "Mean of the task's loss on the held-out examples, in nats; lower is better.",
    ),
)
QUALITY = (
    *_SHIPPED,
    *(each for measure in _SHIPPED if measure.name in MAIN for each in _at_clients(measure)),
    *(_finetuned(measure) for measure in _SHIPPED if measure.name in MAIN),
    _at_clients(next(measure for measure in _SHIPPED if measure.name == "perplexity"))[0],
)
