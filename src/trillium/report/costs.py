"""Measures of what a run costs: traffic, compute, memory and time."""

from __future__ import annotations

from collections.abc import Callable

from trillium.report import human
from trillium.report.human import show_bytes, show_flops
from trillium.report.measure import Measure
from trillium.report.read import Run, number
from trillium.report.traffic import Traffic


def _times(value: float, sd: float | None = None) -> str:
    return human.plain(value, sd) + "×"


def _last(metric: str) -> Callable[[Run], float | None]:
    """The last evaluation of a metric."""
    return lambda run: run.last(metric)


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
