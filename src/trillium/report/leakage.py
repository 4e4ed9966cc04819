"""What the activations of a split give away, as measures of a run.

A run has them where `framework.leakage` is true, and ε where `framework.defence` states one.
"""

from __future__ import annotations

from collections.abc import Callable

from trillium.report import human
from trillium.report.measure import Measure
from trillium.report.read import Run, number


def _found(name: str) -> Callable[[Run], float | None]:
    """The last figure of an attack."""

    def measure(run: Run) -> float | None:
        attacked = (line.get("leakage") for line in reversed(run.evaluations))
        values = (number(found.get(name)) for found in attacked if isinstance(found, dict))
        return next((value for value in values if value is not None), None)

    return measure


LEAKAGE = (
    Measure(
        "nearest_accuracy",
        "Nearest",
        "Recovered by nearest word",
        "Share of held-out tokens whose word embedding is the nearest to the activation that the "
        "server reads.",
        _found("nearest_accuracy"),
        human.percent,
    ),
    Measure(
        "inverter_accuracy",
        "Inverted",
        "Recovered by trained layer",
        "Share of held-out tokens that one linear layer recovers from the activations, after training "
        "on the public set; a lower bound of what can be recovered.",
        _found("inverter_accuracy"),
        human.percent,
    ),
    Measure(
        "inverter_rouge_l",
        "ROUGE-L",
        "ROUGE-L of recovered texts",
        "ROUGE-L (F1) of the texts that this layer recovers, as a mean over held-out texts.",
        _found("inverter_rouge_l"),
        human.percent,
    ),
    Measure(
        "distance_correlation",
        "Distance corr.",
        "Distance correlation",
        "Distance correlation of activations and word embeddings: 0 where they are independent.",
        _found("distance_correlation"),
        human.plain,
    ),
    Measure(
        "label_norm_auc",
        "Label AUC",
        "AUC of labels by gradient",
        "In the U shape, how well the size of the gradient of a text tells its class from the others; "
        "0.5 is not at all.",
        _found("label_norm_auc"),
        human.plain,
    ),
    Measure(
        "epsilon_token",
        "ε token",
        "ε of a token's activation",
        "Differential privacy of the defence, for one token's activation, over all that was sent.",
        lambda run: run.last("epsilon_token"),
        human.plain,
    ),
    Measure(
        "epsilon_text",
        "ε text",
        "ε of a text",
        "The same for all activations of a text.",
        lambda run: run.last("epsilon_text"),
        human.plain,
    ),
)
