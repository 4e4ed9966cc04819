"""The table of e2e_nlg.py."""

from __future__ import annotations

import math
from typing import Any

from trillium.report import human
from trillium.report.human import show_bytes
from trillium.report.markdown import table
from trillium.report.summary import Stat

BASELINE = "centralised"
TITLES = {
    "centralised": "Centralised",
    "split": "Split, both sides train",
    "split_cached": "Split, activations once in int4",
    "fedllm": "FedLLM",
}


def markdown(content: dict[str, Any]) -> str:
    """Return what was found."""
    rows = []
    for arm, title in TITLES.items():
        own = _runs(content, arm)
        if own:
            sent = sum(run["bytes"] for run in own) / len(own)
            shown = [_shown([run[n] for run in own]) for n in ("bleu", "loss", "token_accuracy")]
            rows.append([title, *shown, show_bytes(sent) if sent else "none"])
    seeds = sorted({run["seed"] for run in content["runs"].values()})
    text = (
        "Karpathy's stories260K (five blocks of width 64, 512 tokens), LoRA r = 32 on all its linear "
        "layers. 1600 rows of the development set at three clients, 4 epochs, batches of 24; greedy "
        "descriptions of 300 meanings of the test set, none of which the development set has. Models "
        "read and write placeholders for names, food and kinds of places, most of which are in the "
        "test set alone. BLEU against all references, loss and token accuracy on the first, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    )
    titles = ["Arm", "BLEU", "Loss", "Token accuracy", "Bytes of a client"]
    lines = ["# E2E NLG: centralised, federated and split", "", text, "", *table(titles, rows), ""]
    lines += _claims(content)
    return "\n".join(lines) + "\n"


def _claims(content: dict[str, Any]) -> list[str]:
    """Return a line for each arm: whether it lies within noise of the centralised one."""
    lines = [
        "Differences to the centralised arm, with their standard errors over seeds: within noise are "
        "those below two of them. BLEU of greedy texts is far noisier than the loss. p: how often "
        "answers that are exchanged at random between two arms differ as much (approximate "
        "randomisation); that is the noise of the questions alone, and knows nothing of seeds.",
        "",
    ]
    base = _runs(content, BASELINE)
    for arm, p_value in content["p_values"].items():
        p = f"p = {human.significant(p_value, 2)}"
        if arm == BASELINE:
            spread = max(run["bleu"] for run in base) - min(run["bleu"] for run in base)
            lines.append(
                f"- Two seeds of the centralised arm differ by up to {spread:.1f} BLEU; {p} for "
                f"its first and its second."
            )
            continue
        own = _runs(content, arm)
        bleu, loss = _difference(own, base, "bleu", 1), _difference(own, base, "loss", 3)
        lines.append(f"- {TITLES[arm]}: BLEU {bleu}, {p}; loss {loss}")
    return lines


def _runs(content: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [run for run in content["runs"].values() if run["arm"] == arm]


def _difference(
    own: list[dict[str, Any]], base: list[dict[str, Any]], measure: str, digits: int
) -> str:
    """Return the difference of the means, its standard error, and what that says."""
    one, other = (Stat.of(run[measure] for run in runs) for runs in (own, base))
    assert one is not None
    assert other is not None
    difference = one.mean - other.mean
    if one.sd is None or other.sd is None:
        return f"{difference:+.{digits}f} (one seed)"
    error = math.sqrt(one.sd**2 / one.num + other.sd**2 / other.num)
    verdict = "within" if abs(difference) < 2 * error else "beyond"
    return f"{difference:+.{digits}f} ± {error:.{digits}f}, **{verdict} noise**"


def _shown(values: list[float]) -> str:
    stat = Stat.of(values)
    return human.NONE if stat is None else human.plain(stat.mean, stat.sd)
