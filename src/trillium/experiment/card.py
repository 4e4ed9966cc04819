"""The model card of what a run has trained: what it is, how good it is, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from trillium.config.experiment import ExperimentConfig, experiment
from trillium.experiment.kept import ADAPTER, CLIENTS, place_of
from trillium.models.packaged import HUB_IDS
from trillium.report.human import as_words
from trillium.report.measure import QUALITY
from trillium.report.privacy import guarantee
from trillium.report.read import Run, number, read_run

TEMPLATE: Final = Path(__file__).with_name("card.md.j2")
_PIPELINES: Final = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
}
_MORE: Final = ("f1", "reward_chosen", "reward_rejected")  # than tables have room for
_COUNTS: Final = ("num_examples",)


def write_cards(folder: Path, config: ExperimentConfig) -> None:
    """Write a card beside every model that a run keeps."""
    if place_of(folder, None).is_dir():
        write_card(folder, config, place_of(folder, None))
    for path in folder.glob(f"{CLIENTS}/*/{ADAPTER}"):
        write_card(folder, config, path, path.parent.name)


def write_card(folder: Path, config: ExperimentConfig, to: Path, client: str | None = None) -> None:
    """Write the card of a run's model, `README.md`, beside what was exported.

    Of the data it tells sizes and class names, and no row.

    Args:
        folder: of the run, whose configuration is `config`.
        to: holds an adapter, or a whole model.
        client: whose model it is; the server's for `None`.
    """
    run = read_run(folder)
    model = config.of(client).model
    is_adapter = (to / "adapter_config.json").is_file()
    base = model.id if not Path(model.id).is_dir() else None
    measures, pipeline = dict(_measures(run, client)), _PIPELINES[config.task.peft_task]
    title = f"{run.arm}, seed {config.seed}" + (f", {client}" if client is not None else "")
    data = ModelCardData(
        base_model=HUB_IDS.get(base or "", base),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=pipeline,
        tags=["trillium", "federated-learning", config.framework.name],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type=pipeline,
                dataset_type=config.data.source.name,
                dataset_name="held-out rows of the run",
                metric_type=name,
                metric_value=value,
            )
            for name, value in measures.items()
            if name not in _COUNTS and not name.startswith("epsilon")
        ],
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        title=title,
        pipeline=pipeline,
        config=config,
        client=client,
        base=HUB_IDS.get(model.id, model.id),
        revision=model.revision,
        is_adapter=is_adapter,
        new_tokens=_new_tokens(to) if is_adapter else [],
        trust=", trust_remote_code=True" if model.trust_remote_code else "",
        own_adapter=config.of(client).adapter.name == "bottleneck",
        auto=config.task.auto_class,
        classifies=config.task.peft_task != "CAUSAL_LM",
        sizes=_sizes(run.data),
        labels=run.data.get("labels") or [],
        measures={name: f"{value:.4g}" for name, value in measures.items()},
        settings=_settings(config),
        round=run.kept_round,
        guarantee=guarantee(run.evaluations[-1] if run.evaluations else {}),
        versions=run.env.get("versions") or {},
    )
    card.save(to / "README.md")


def _new_tokens(folder: Path) -> list[int]:
    """Return the tokens that an adapter has added to its base, in order."""
    found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return next(iter((found.get("trainable_token_indices") or {}).values()), [])


def _measures(run: Run, client: str | None) -> Iterator[tuple[str, float]]:
    """Yield what was measured of the model, at the round that it is of."""
    line: Mapping[str, Any] = run.kept[-1] if run.kept else {}
    found = line if client is None else (line.get("clients") or {}).get(client, {})
    for name in (*QUALITY, *_MORE, *_COUNTS):
        if (known := number(found.get(name))) is not None:
            yield name, known
    for name, value in (run.evaluations[-1] if run.evaluations else {}).items():
        if name.startswith("epsilon") and (known := number(value)) is not None:
            yield name, known


def _sizes(data: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows there were, by what they were for."""
    clients = data.get("clients") or {}
    told = {name: own["num_examples"] for name, own in clients.items() if own}
    found = {f"training rows of {name}": count for name, count in told.items()}
    if len(found) > 20:
        counts = sorted(found.values())
        found = {
            f"training rows of {len(counts)} clients together": sum(counts),
            "fewest of a client": counts[0],
            "most of a client": counts[-1],
        }
    for name, what in (("public rows", "public"), ("held-out rows", "test")):
        found[name] = (data.get(what) or {}).get("num_examples", 0)
    return found


def _settings(config: ExperimentConfig) -> list[str]:
    """Return what differs from the defaults, as it is written on the command line."""
    tree = config.tree()
    given = {"task": config.task.name, "framework": config.framework.name}
    source = {"data": {"source": tree["data"]["source"]}}
    found = _others(tree, experiment({**given, **source}).tree())
    for told in ("data", "model"):  # which have lines of their own
        found.pop(told, None)
    return as_words({"framework": {"name": config.framework.name}, **found})


def _others(tree: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a tree that is not as in another one."""
    found = {}
    for key, value in tree.items():
        known = default.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if value.get("name") != known.get("name"):
                known = {}
            if inside := _others(value, known):
                found[key] = inside
        elif value != known:
            found[key] = value
    return found
