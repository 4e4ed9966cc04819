"""A setting that is given acts, or is refused: the whole tree, walked for every framework.

Each field of each component is given another value in a small run. Then state, ledger, measures or what
is said of the data differ; or the value is refused; or the field stands, with the reason, in one of the
lists below. A new field is walked without a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from tiny import experiment_config
from trillium.component import Component, known
from trillium.config.experiment import ExperimentConfig, experiment, merge
from trillium.errors import UserError
from trillium.federation.failed import RoundFailed
from trillium.frameworks import Framework
from walk import leaves, others, printed, tree_of

FRAMEWORKS = cast(dict[str, type[Framework]], known(Framework))
# What a run of a classifier of a few words does not meet: other machines, models and data.
OUTSIDE = {
    "framework": "each is walked by itself",
    "model.id": "another model",
    "model.revision": "of the hub",
    "model.device": "another device",
    "model.quantize": "needs a checkpoint",
    "model.random_weights": "needs a checkpoint",
    "model.resize_embeddings": "needs a tokenizer of more tokens than embeddings",
    "model.trust_remote_code": "needs a model with code of its own",
    "data.unusable": "needs a client with nothing to learn from",
    "model.head": "the tiny models have one layer in their heads",
    "model.attention": "the same numbers in another order: equal to rounding",
    "data.source*": "held by the tests of the sources",
    "data.public*": "held by the tests of public sets",
    "task*": "held by the tests of the tasks, and below",
    "adapter.target_modules": "held by the tests of the adapters",
    "adapter.layers": "held by the tests of the adapters",
    "plan*": "a clock if all speeds are told, else of plans and reports",
    "report.track": "held by the tests of trackers; these runs have no folder",
}
# No effect by mathematics, or because they bound what is smaller.
NO_EFFECT = {
    "evaluation.batch_tokens": "measures are sums over examples",
    "evaluation.keep": "the last of so few rounds is the best one, mostly",
    "evaluation.patience": "a bound: no round is without a gain, mostly",
    "fleet.min_replies": "a bound: everybody replies",
    "fleet.on_failure": "everybody replies",
    "framework.cache_bytes": "a bound of the file",
    "framework.cache": "false is what null stands for where the clients' blocks train",
    "framework.feedback": "lossless codecs lose nothing",
    "framework.weights": "the clients have as many examples",
    "framework.mode": "held by the split's own tests with more clients",
    "training.cache_bytes": "a bound of the file",
    "training.max_length": "a bound: texts are shorter",
    "data.test_size": "a bound: there are fewer rows",
    "data.validation_fraction": "held by the tests of the data",
    "framework.average": "means of equal opinions",
    "data.partition.min_size": "a bound: clients have more",
    "framework.download.resync_after": "a bound: nobody misses so many rounds",
    "framework.aggregator.trim": "a share of so few clients that it is none of them",
}


def listed(path: str, table: Mapping[str, str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in table)


def silent(base: ExperimentConfig, within: str = "", third: slice = slice(None)) -> list[str]:
    """The fields below a path that take another value and change nothing."""
    tree, before, found = base.tree(), printed(base), []
    for path, annotation, value in [*leaves(base)][third]:
        if path == "data.public_size" and not base.framework.needs_public:
            continue  # nothing needs a public set, so there is none; the report says so
        if listed(path, OUTSIDE) or listed(path, NO_EFFECT) or not path.startswith(within):
            continue
        acts = refused = taken = False
        for other in others(path, annotation, value):
            try:
                config = experiment(merge(tree, tree_of(path, other)))
                after = printed(config)
            except (UserError, ValidationError, RoundFailed):
                refused = True
                continue
            taken, acts = True, after != before
            if acts and not isinstance(value, Component):
                break
            if isinstance(value, Component):
                if not acts:
                    break
                found += silent(config, f"{path}.")
        if taken and not acts:
            found.append(path)
        assert taken or refused, f"no other value is known of {path}: write one in EXAMPLES"
    return found


# One third of each framework's fields before a merge, by turns, so that each field is walked in some.
THIRDS = [
    pytest.param(
        framework,
        n,
        marks=pytest.mark.slow if n == turn % 3 else pytest.mark.drill,
        id=f"{framework}-{n}",
    )
    for turn, framework in enumerate(FRAMEWORKS)
    for n in range(3)
]


@pytest.mark.parametrize(("framework", "first"), THIRDS)
def test_every_setting_acts_or_is_refused(hub: Path, framework: str, first: int) -> None:
    words = [f"framework={framework}", "data.partition={name: dirichlet, alpha: 1.0}"]
    words += ["training.batch_size=5"] * FRAMEWORKS[framework].trains
    base = experiment_config(hub, *words, "data.num_clients=2")
    assert silent(base, third=slice(first, None, 3)) == []


def test_a_setting_that_nothing_reads_is_found(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk can fail: without what a framework says of itself, its idle settings are found."""
    monkeypatch.setattr(Framework, "without_effect", lambda self, config: iter(()))
    base = experiment_config(hub, "framework=zero_shot", "data.num_clients=2")
    assert "training.schedule" in silent(base, "training.")
