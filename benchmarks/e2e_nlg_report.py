"""The table of e2e_nlg.py."""

from __future__ import annotations

import statistics
from typing import Any

from frontier_markdown import table
from trillium.report import human
from trillium.report.measures import show_bytes
from trillium.report.summary import Stat

BASELINE = "centralised"


def markdown(content: dict[str, Any]) -> str:
    """Return what was found."""
    settings = content["settings"]
    rows, bleus = [], {}
    for arm, how in settings["arms"].items():
        own = [run for run in content["runs"].values() if run["arm"] == arm]
        if own:
            bleus[arm] = [run["bleu"] for run in own]
            sent = sum(run["bytes"] for run in own) / len(own)
            shown = [_shown([run[n] for run in own]) for n in ("bleu", "loss", "token_accuracy")]
            rows.append([how["title"], *shown, show_bytes(sent) if sent else "none"])
    seeds = sorted({run["seed"] for run in content["runs"].values()})
    sizes = settings["rows"]
    text = (
        f"Karpathy's stories260K (five blocks of width 64, 512 tokens), LoRA r = "
        f"{settings['adapter']['r']} on all its linear layers. {sizes['train']} rows of the "
        f"development set at three clients, {settings['rounds']} epochs, batches of 24; greedy "
        f"descriptions of {sizes['answered']} meanings of the test set, none of which the "
        f"development set has. Models read and write placeholders for names, food and kinds of places, "
        f"most of which are in the test set alone. BLEU against all references, loss and token "
        f"accuracy on the first, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    )
    titles = ["Arm", "BLEU", "Loss", "Token accuracy", "Bytes of a client"]
    lines = ["# E2E NLG: centralised, federated and split", "", text, "", *table(titles, rows), ""]
    lines += _claims(content, bleus)
    return "\n".join(lines) + "\n"


def _claims(content: dict[str, Any], bleus: dict[str, list[float]]) -> list[str]:
    """Return a line for each arm: whether it lies within noise of the centralised one."""
    lines = [
        "p: how often answers that are exchanged at random between an arm and the centralised one "
        "differ as much (approximate randomisation). That is the noise of the questions; the spread "
        "over seeds is that of training. Within noise is a difference with p of 0.05 or more, or one "
        "that is no larger than the largest between two seeds of the centralised arm.",
        "",
    ]
    base = bleus.get(BASELINE, [])
    spread = max(base, default=0.0) - min(base, default=0.0)
    for arm, p_value in content["p_values"].items():
        p = human.significant(p_value, 2)
        if arm == BASELINE:
            lines.append(
                f"- Between seeds of the centralised arm: {spread:.1f} BLEU at most; p = {p} of its "
                f"first seed and its second"
            )
            continue
        difference = statistics.fmean(bleus[arm]) - statistics.fmean(base)
        within = p_value >= 0.05 or abs(difference) <= spread
        verdict = "within noise" if within else "beyond noise"
        title = content["settings"]["arms"][arm]["title"]
        lines.append(f"- {title}: {difference:+.1f} BLEU, p = {p}: **{verdict}**")
    return lines


def _shown(values: list[float]) -> str:
    stat = Stat.of(values)
    return human.NONE if stat is None else human.plain(stat.mean, stat.sd)
