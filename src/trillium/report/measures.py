"""Every measure that a report shows: its name, its unit, what it means, and how a run gives it.

This table and that of `trillium.report.leakage` are the only places where a measure is defined;
tables, CSV, plots and the page follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import stdev

from trillium.report import human
from trillium.report.leakage import LEAKAGE
from trillium.report.measure import MAIN, Measure
from trillium.report.privacy import EPSILON
from trillium.report.read import Run, number
from trillium.report.traffic import Traffic


def show_bytes(value: float, sd: float | None = None) -> str:
    """Return bytes for people."""
    return human.prefixed(value, "B", sd)


def show_flops(value: float, sd: float | None = None) -> str:
    """Return a number of floating-point operations for people."""
    return human.prefixed(value, "FLOPs", sd)


def _times(value: float, sd: float | None = None) -> str:
    return human.plain(value, sd) + "×"


def _last(metric: str) -> Callable[[Run], float | None]:
    """The last evaluation of a metric."""
    return lambda run: run.last(metric)


def _shipped(metric: str) -> Callable[[Run], float | None]:
    """A metric of the model that is shipped."""
    return lambda run: run.shipped(metric)


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


def _from_ledger(of: Callable[[Traffic], float | None]) -> Callable[[Run], float | None]:
    """A measure of the ledger, None where it is lost."""
    return lambda run: of(run.traffic) if run.traffic else None


def _per_turn(of: Callable[[Traffic], float]) -> Callable[[Run], float | None]:
    """A sum over the ledger, per client and round in which that client took part."""
    return _from_ledger(lambda traffic: of(traffic) / max(traffic.num_turns, 1))


def per_client(total: float | None, run: Run) -> float | None:
    """Return a sum over the clients as a mean over all clients of the federation."""
    return None if total is None else total / max(run.num_clients, 1)


def _padding(of: str) -> Callable[[Run], float | None]:
    """The share of padding that the data of a run say."""
    return lambda run: number((run.data.get("padding") or {}).get(of))


def bytes_per_client(run: Run, round_index: int | None = None) -> float | None:
    """Return training bytes up and down until a round (all of them), as a mean over all clients."""
    if run.traffic is None:
        return None
    total = run.traffic.until(round_index)
    return per_client(total.bytes_up + total.bytes_down, run)


def flops_per_client(run: Run, round_index: int | None = None) -> float | None:
    """Return the FLOPs of the clients until a round (all of them), as a mean over all clients."""
    return per_client(run.traffic.until(round_index).flops, run) if run.traffic else None


_SHIPPED = (
    Measure(
        "accuracy",
        "Accuracy",
        "Accuracy",
        "Share of held-out examples that the model which would be shipped gets right, "
        "at the last evaluation.",
        _shipped("accuracy"),
        human.percent,
    ),
    Measure(
        "f1",
        "F1",
        "F1 (macro)",
        "Harmonic mean of precision and recall on the held-out examples, averaged over the labels.",
        _shipped("f1"),
        human.percent,
    ),
    Measure(
        "f1_micro",
        "Micro F1",
        "F1 (micro)",
        "Harmonic mean of precision and recall over all labels of all held-out texts.",
        _shipped("f1_micro"),
        human.percent,
    ),
    Measure(
        "f1_macro",
        "Macro F1",
        "F1 (macro)",
        "The same of each label that a held-out text has or is given, averaged over the labels.",
        _shipped("f1_macro"),
        human.percent,
    ),
    Measure(
        "pearson",
        "Pearson",
        "Pearson's correlation",
        "Correlation of what is said of held-out texts with what is so; of several numbers the mean.",
        _shipped("pearson"),
        human.plain,
    ),
    Measure(
        "spearman",
        "Spearman",
        "Spearman's correlation",
        "The same of their ranks.",
        _shipped("spearman"),
        human.plain,
    ),
    Measure(
        "rmse",
        "RMSE",
        "Root mean squared error",
        "Of what is said of held-out texts; of several numbers the mean; lower is better.",
        _shipped("rmse"),
        human.plain,
    ),
    *(
        Measure(
            f"entity_{name}",
            f"Entity {short}",
            f"{title} of entities",
            f"{title} of whole entities in held-out texts: kind, first and last word agree (seqeval).",
            _shipped(f"entity_{name}"),
            human.percent,
        )
        for name, short, title in (
            ("f1", "F1", "F1"),
            ("precision", "prec.", "Precision"),
            ("recall", "rec.", "Recall"),
        )
    ),
    Measure(
        "exact_match",
        "Exact match",
        "Exact match",
        "Share of held-out examples whose generated answer equals the reference.",
        _shipped("exact_match"),
        human.percent,
    ),
    Measure(
        "chrf",
        "chrF",
        "chrF",
        "Overlap of characters of generated answers with their references, from 0 to 100.",
        _shipped("chrf"),
        human.plain,
    ),
    Measure(
        "bleu",
        "BLEU",
        "BLEU",
        "Overlap of words of generated answers with their references, from 0 to 100.",
        _shipped("bleu"),
        human.plain,
    ),
    Measure(
        "rouge_l",
        "ROUGE-L",
        "ROUGE-L",
        "Longest common subsequence of words of generated answers and their references, from 0 to 100.",
        _shipped("rouge_l"),
        human.plain,
    ),
    Measure(
        "perplexity",
        "Perplexity",
        "Perplexity",
        "Exponential of the mean loss per token on held-out text; lower is better.",
        _shipped("perplexity"),
        human.plain,
    ),
    Measure(
        "token_accuracy",
        "Token acc.",
        "Token accuracy",
        "Share of held-out tokens that the model predicts right, or of words whose tag is right.",
        _shipped("token_accuracy"),
        human.percent,
    ),
    Measure(
        "reward_accuracy",
        "Reward acc.",
        "Reward accuracy",
        "Share of held-out pairs whose chosen answer has gained more over the reference than the "
        "rejected one.",
        _shipped("reward_accuracy"),
        human.percent,
    ),
    Measure(
        "reward_margin",
        "Margin",
        "Reward margin",
        "By how much more the chosen answer has gained than the rejected one: the mean over held-out "
        "pairs, in nats times beta.",
        _shipped("reward_margin"),
        human.plain,
    ),
    Measure(
        "loss",
        "Loss",
        "Loss",
        "Mean of the task's loss on the held-out examples, in nats; lower is better.",
        _shipped("loss"),
        human.plain,
    ),
)
QUALITY = (
    *_SHIPPED,
    *(each for measure in _SHIPPED if measure.name in MAIN for each in _at_clients(measure)),
    *(_finetuned(measure) for measure in _SHIPPED if measure.name in MAIN),
    _at_clients(next(measure for measure in _SHIPPED if measure.name == "perplexity"))[0],
)

COST = (
    Measure(
        "bytes_up_per_client_round",
        "Up /round",
        "Sent up per client and round",
        "Encoded bytes that a client sends in a round in which it takes part.",
        _per_turn(lambda traffic: traffic.until().bytes_up),
        show_bytes,
    ),
    Measure(
        "bytes_down_per_client_round",
        "Down /round",
        "Sent down per client and round",
        "Encoded bytes that a client receives in a round in which it takes part.",
        _per_turn(lambda traffic: traffic.until().bytes_down),
        show_bytes,
    ),
    Measure(
        "bytes_per_client",
        "Total /client",
        "Communication per client",
        "Encoded bytes up and down over all rounds of training, as a mean over all clients.",
        bytes_per_client,
        show_bytes,
    ),
    Measure(
        "flops_per_client",
        "Compute /client",
        "Client compute",
        "Floating-point operations a client executed in training, as a mean over all clients; "
        "the server's are not in it.",
        flops_per_client,
        show_flops,
    ),
    Measure(
        "peak_bytes_client",
        "Peak mem.",
        "Peak memory of a client",
        "The most memory any client needed while it handled a training message.",
        _from_ledger(lambda traffic: traffic.peak_bytes),
        show_bytes,
    ),
    Measure(
        "seconds_per_client",
        "Client time",
        "Client time",
        "Seconds a client spent in the model for training messages, as a mean over all clients.",
        lambda run: per_client(run.traffic.until().seconds, run) if run.traffic else None,
        human.duration,
    ),
    Measure(
        "wall_seconds",
        "Wall time",
        "Wall time of training",
        "Seconds of all rounds, start to end of each; evaluation is left out.",
        _last("seconds"),
        human.duration,
    ),
    Measure(
        "simulated_seconds",
        "Sim. time",
        "Simulated time",
        "How long the run would have taken with the devices and links of its `plan`.",
        _last("simulated_seconds"),
        human.duration,
    ),
    Measure(
        "bytes_once_per_client",
        "Once only",
        "Transferred once per client",
        "Weight of the frozen tensors of the model that a client must hold; never part of the "
        "figures above.",
        lambda run: sum(run.once.values()) if run.once else None,
        show_bytes,
    ),
    Measure(
        "bytes_once_on_wire_per_client",
        "Once, on wire",
        "Messages sent once per client",
        "Bytes of messages that crossed the wire once only, as a mean over all clients; "
        "never part of the figures above.",
        lambda run: per_client(run.traffic.bytes_once, run) if run.traffic else None,
        show_bytes,
    ),
    Measure(
        "num_answers_per_client_round",
        "Answers /round",
        "Answers per client and round",
        "Messages a client sends in a round in which it takes part; each costs one round trip.",
        _per_turn(lambda traffic: traffic.num_answers),
        human.plain,
    ),
    Measure(
        "compression",
        "Compression",
        "Compression",
        "Bytes before the codecs over bytes sent.",
        _from_ledger(lambda traffic: traffic.compression),
        _times,
    ),
    Measure(
        "padding_training",
        "Padding",
        "Padding in training",
        "Share of padding among the tokens of the clients' batches, in the first round.",
        _padding("training"),
        human.percent,
    ),
    Measure(
        "padding_evaluation",
        "Padding, held out",
        "Padding in evaluation",
        "Share of padding among the tokens of the batches of held-out texts.",
        _padding("evaluation"),
        human.percent,
    ),
)

MEASURES = (*QUALITY, *COST, EPSILON, *LEAKAGE)
BY_NAME = {measure.name: measure for measure in MEASURES}
