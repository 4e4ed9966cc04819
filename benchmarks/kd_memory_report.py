"""Tables and plot of the peak memory of KD-FedLLM on language models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from trillium.frameworks.kd.distillation import WIDE
from trillium.report import human
from trillium.report.style import arm_styles, png, quiet_style, scale_axis

Case = Mapping[str, Any]
STAGES = {
    "predict": "predict, encode",
    "translate": "translate",
    "teacher": "teacher",
    "distil": "distil",
    "own step": "own step",
    "evaluate": "evaluate",
}
PATH = ("predict", "translate", "teacher", "distil")  # what handles soft labels


def working(stage: Mapping[str, Any]) -> int:
    """Return the bytes of a stage beside the model's own."""
    return int(stage["peak_bytes"] - stage["own_bytes"])


def titled(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return the cases of each series by its title, in the order in which they come."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        embeddings = "tied" if case["tied"] else "untied"
        title = f"Trillium: {case['codec']}, adapter {case['adapter']}, {embeddings} embeddings"
        found.setdefault("Naive: all logits at once" if case["naive"] else title, []).append(case)
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """Return the tables."""
    rows = content["examples"] * (content["tokens"] + 1)
    lines = [
        "# Peak memory of KD-FedLLM on language models",
        "",
        f"A Llama of two blocks of width 64 with random weights; {content['examples']} public texts, "
        f"{rows} predictions; {content['clients']} clients; distillation in batches of "
        f"{content['batch_size']} texts. At most {human.prefixed(content['chunk_bytes'], 'B')} of "
        f"soft labels are decoded at once; from {WIDE:,} tokens on logits are made as many at a time.",
        "",
        "Bytes of all tensors that lived at once, the model's own left out: its weights and, while it "
        "trains, gradients and AdamW's moments. In brackets: by how much the process grew, as the "
        "operating system saw it. `own step` and `evaluate` are no part of distillation: an ordinary "
        "training step of a client, and a look at held-out rows, of "
        f"{content['batch_size']} examples with all their logits. What the process grew by while it "
        "distils has the gradients and moments in it.",
    ]
    for title, cases in titled(content["cases"]).items():
        lines += ["", f"## {title}", "", *_table(cases)]
    return "\n".join([*lines, "", _environment(content["environment"]), ""])


def _table(cases: list[Case]) -> list[str]:
    wide = [case for case in cases if case["vocabulary"] >= WIDE and case["stages"]]
    head = [f"{case['vocabulary']:,}" for case in cases]
    last = f"largest by smallest from {WIDE:,} on"
    lines = [f"| vocabulary | {' | '.join(head)} | {last} |", "|---" * (len(head) + 2) + "|"]
    for stage, title in STAGES.items():
        cells = [_cell(case, stage) for case in cases]
        if not any(cells):
            continue
        sizes = [working(case["stages"][stage]) for case in wide]
        ratio = f"{max(sizes) / min(sizes):.2f}" if len(sizes) > 1 else human.NONE
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio} |")
    own = [_own(case) for case in cases]
    return [*lines, f"| the model's own, training | {' | '.join(own)} | |"]


def _cell(case: Case, stage: str) -> str:
    if not case["stages"]:
        return f"not run: at least {human.prefixed(case['at_least_bytes'], 'B')}"
    if stage not in case["stages"]:
        return ""
    figures = case["stages"][stage]
    grown = figures["resident_bytes"]
    seen = "" if grown is None else f" ({human.prefixed(grown, 'B')})"
    return human.prefixed(working(figures), "B") + seen


def _own(case: Case) -> str:
    return human.prefixed(case["stages"]["distil"]["own_bytes"], "B") if case["stages"] else ""


def _environment(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    source = f"commit {found['git_sha']}" if found["git_sha"] else "a copy of the package"
    return (
        f"Made by `{' '.join(found['argv'])}` of {source}, on {found['device']}, with {versions}."
    )


def plot(content: Mapping[str, Any]) -> bytes:
    """Return a PNG: the largest stage of the path by vocabulary, series by series."""
    with quiet_style():
        figure = Figure(figsize=(9.0, 5.0), layout="constrained")
        axes = figure.subplots()
        series = titled(content["cases"])
        styles = arm_styles([*series, "own step"])
        sizes: list[float] = []
        for title, cases in series.items():
            known = [case for case in cases if case["stages"]]
            xs = [case["vocabulary"] for case in known]
            ys = [max(working(c["stages"][s]) for s in PATH if s in c["stages"]) for c in known]
            axes.plot(xs, ys, label=title.removeprefix("Trillium: "), **styles[title])
            sizes += [*ys]
        first = [case for case in next(iter(series.values())) if case["stages"]]
        steps = [working(case["stages"]["own step"]) for case in first]
        label = f"a client's own training step of {content['batch_size']} texts"
        style = styles["own step"] | {"color": "#777777", "linestyle": ":"}
        axes.plot([case["vocabulary"] for case in first], steps, label=label, **style)
        chunk = content["chunk_bytes"]
        axes.axhline(chunk, color="#333333", linestyle="--", linewidth=1.0, label="one chunk")
        scale_axis(axes.yaxis, [*sizes, *steps, chunk], "B", log=True)
        axes.set_xscale("log")
        ticks = [case["vocabulary"] for case in first]
        axes.set_xticks(ticks, [f"{size / 1000:.0f}k" for size in ticks])
        axes.minorticks_off()
        axes.set_xlabel("Vocabulary")
        axes.set_ylabel("Peak beside the model's own")
        axes.set_title("Soft labels of a language model: peak memory of the largest stage")
        figure.legend(loc="outside lower center", ncols=2)
        return png(figure)
