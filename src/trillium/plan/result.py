"""A plan as plain values: what `plan.json` holds, and what tables and plots are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.parts import TooLong
from trillium.frameworks.private import foreseen
from trillium.plan.collector import collector_paused
from trillium.plan.data import Texts, by_tier
from trillium.plan.models import Models
from trillium.plan.predict import Prediction, predict
from trillium.plan.sums import Sums, Traffic
from trillium.rng import scoped_rng
from trillium.tasks import Example

if TYPE_CHECKING:
    from trillium.federation.client import Client
    from trillium.federation.server import Server
    from trillium.federation.side import Side


@collector_paused()
def plan_of_run(config: ExperimentConfig, server: Server, clients: Sequence[Client]) -> Any:
    """Return the plan of a simulated run, from the data that it has, as plain values.

    A run never fails for want of a plan: where there is none, it says why.
    """
    try:
        with scoped_rng(config.seed, "plan"):
            texts, models = texts_of(config, server, clients), _models(repr(config.model))
            models.paper.values.forget()
            for side in (server, *clients):
                _check_trained(
                    config.of(None if side is server else side.name), side, texts, models
                )
            return to_dict(predict(config, texts, models))
    except TooLong:  # nor would the run get further
        raise
    except UserError as error:
        return {"not_planned": f"{error.given}: {error.why}"}
    except Exception as error:
        return {"not_planned": f"{type(error).__name__}: {error}"}


@lru_cache(maxsize=1)
def _models(base: str) -> Models:
    """Return what makes models on paper; the runs of a comparison share it."""
    return Models()


def _check_trained(config: ExperimentConfig, side: Side, texts: Texts, models: Models) -> None:
    """Refuse to plan where a checkpoint has decided what trains, which its configuration does not tell.

    Raises:
        UserError: other parameters train than on paper.
    """
    paper = models.get(config, texts.num_classes, None).initial
    differ = side.model.initial.keys() ^ paper.keys()
    if differ:
        raise UserError(
            f"a plan where {', '.join(sorted(differ)[:3])} train or do not",
            "the checkpoint lacks weights, which train beside the adapter",
            "The ledger of the run has the figures",
        )


def texts_of(config: ExperimentConfig, server: Server, clients: Sequence[Client]) -> Texts:
    """Return the data of a simulated run as a plan sees it.

    Args:
        server: has the public set, and has written it by now if it does.
    """
    public_of: dict[str, list[Example]] = {}
    if config.framework.needs_public:
        by_model: dict[int, list[Example]] = {id(server.model): server.public}
        rows = server.public_rows
        columns = {name: rows[name][:] for name in rows.column_names}
        for client in clients:
            if id(client.model) not in by_model:
                by_model[id(client.model)] = client.tokenize(columns)
            public_of[client.name] = by_model[id(client.model)]
    return Texts(
        clients={client.name: client.examples for client in clients},
        public=server.public,
        num_classes=0 if config.task.peft_task == "CAUSAL_LM" else server.model.num_classes,
        rows=server.public_rows,
        public_of=public_of,
        written=server.meter.read().flops,
        test=server.test,
        tokenizers={
            None: server.model.tokenizer,
            **{client.name: client.model.tokenizer for client in clients},
        },
        dialects=server.dialects,
        held={c.name: c.test for c in clients} if config.evaluation.where != "server" else {},
    )


def to_dict(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as values that JSON can hold."""
    config, total = prediction.config, prediction.total
    tiers = by_tier(config, prediction.clients)
    labels = {name: label for label, names in tiers.items() for name in names}
    return {
        "framework": config.framework.name,
        "model": config.model.id,
        "num_parameters": prediction.num_parameters,
        "num_trained": prediction.num_trained,
        "rounds": config.rounds,
        "planned_rounds": prediction.planned_rounds,
        **({"estimate": prediction.estimate} if prediction.estimate else {}),
        "assumed": prediction.texts.assumed,
        "upper_bound": prediction.upper_bound,
        **({"privacy": private} if (private := foreseen(config, prediction.num_added)) else {}),
        "once_bytes": dict(prediction.once_bytes),
        "total": _sums(total),
        "server": {
            "flops": prediction.server_flops,
            "peak_bytes": prediction.server_peak_bytes,
        },
        "clients": {
            name: {
                "tier": labels[name],
                **_sums(sums),
                "memory": asdict(prediction.memory[name]) if name in prediction.memory else {},
                "later_round": _sums(prediction.later.get(name, Sums())),
            }
            for name, sums in prediction.clients.items()
        },
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {
        "up": _traffic(sums.up),
        "down": _traffic(sums.down),
        "once": _traffic(sums.once),
        "flops": sums.flops,
        "peak_bytes": sums.peak_bytes,
        **(
            {"evaluate": {**_traffic(sums.looks), "flops": sums.look_flops}}
            if sums.looks.messages
            else {}
        ),
    }


def _traffic(traffic: Traffic) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": round(traffic.bytes), "messages": round(traffic.messages)}
    if traffic.low != traffic.high:
        found |= {"low": round(traffic.low), "high": round(traffic.high)}
    return {**found, "kinds": {kind: round(n) for kind, n in sorted(traffic.kinds.items())}}
