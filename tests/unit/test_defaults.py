"""Defaults by task: what a language model gets where nothing is written, and what wins over it."""

from __future__ import annotations

from typing import Any

import pytest

from trillium.component import known
from trillium.config.comparison import comparison
from trillium.config.defaults import BY_TASK, remarks, value_at
from trillium.config.experiment import ExperimentConfig, experiment, parse_overrides
from trillium.errors import UserError
from trillium.frameworks import Framework

LANGUAGE = "task=causal_lm"


def config_of(*words: str) -> ExperimentConfig:
    return experiment(parse_overrides(words))


def settings(*words: str) -> dict[str, Any]:
    tree = config_of(*words).tree()
    return {default.path: value_at(tree, default.path) for default in BY_TASK}


def test_a_classifier_has_the_defaults_of_the_classes() -> None:
    tree = ExperimentConfig().tree()
    assert settings() == {default.path: value_at(tree, default.path) for default in BY_TASK}


@pytest.mark.parametrize("task", ["causal_lm", "{name: causal_lm, generate: 3}"])
def test_a_language_model_has_others(task: str) -> None:
    found = settings(f"task={task}")
    assert found["training.optimizer.lr"] == 2e-4
    assert found["adapter.target_modules"] == "all-linear"
    assert found["wire.up"] == []  # that is of soft labels
    assert found["evaluation.batch_tokens"] < settings()["evaluation.batch_tokens"]
    assert settings(f"task={task}", "adapter=full")["training.optimizer.lr"] == 2e-5
    for framework in ("{name: kd, direction: both}", "{name: kd, direction: server}"):
        assert settings(f"task={task}", f"framework={framework}")["framework.temperature"] == 1.0


@pytest.mark.parametrize(
    ("words", "ways"),
    [
        ((), ("up", "down")),
        (("framework.direction=client",), ("up", "down")),
        (("framework.direction=server",), ("up",)),
    ],
)
def test_soft_labels_of_a_vocabulary_name_sixteen_classes(
    words: tuple[str, ...], ways: tuple[str, ...]
) -> None:
    wire = config_of(LANGUAGE, "framework=kd", *words).wire
    for way in ("up", "down"):
        codecs = [codec.to_config() for codec in getattr(wire, way)]
        assert [c["name"] for c in codecs] == ["top_classes"] * (way in ways)
        assert all(codec["k"] == 16 for codec in codecs)


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("training.optimizer.lr=0.01", "training.optimizer.lr", 0.01),
        ("training.optimizer={lr: 0.001}", "training.optimizer.lr", 0.001),  # that of classifiers
        ("training.optimizer=sgd", "training.optimizer.lr", 1e-3),
        ("adapter.target_modules=null", "adapter.target_modules", None),
        ("adapter.target_modules=[q_proj]", "adapter.target_modules", ["q_proj"]),
        ("adapter=ia3", "adapter.target_modules", None),
        ("evaluation.batch_tokens=64", "evaluation.batch_tokens", 64),
        ("wire.up=[]", "wire.up", []),
        ("framework.temperature=2", "framework.temperature", 2.0),
        ("wire.down=[int8]", "wire.down.0.name", "int8"),
    ],
)
def test_what_is_written_wins(word: str, path: str, value: Any) -> None:
    tree = config_of(LANGUAGE, "framework=kd", word).tree()
    assert value_at(tree, path) == value


@pytest.mark.parametrize("framework", known(Framework))
def test_they_are_written_down_and_read_back(framework: str) -> None:
    """A default that nothing reads is no setting that was given; one that was given is refused."""
    config = config_of(LANGUAGE, f"framework={framework}")
    assert experiment(config.tree()) == config
    if framework == "zero_shot":
        with pytest.raises(UserError, match="nothing trains"):
            config_of(LANGUAGE, f"framework={framework}", "training.optimizer.lr=0.01")


def test_arms_of_other_tasks_have_their_own() -> None:
    recipe = {
        "arms": {
            "words": {"task": "causal_lm"},
            "classes": {},
            "taught": {"task": "causal_lm", "framework": "kd"},
            "as_it_is": {"task": "causal_lm", "framework": "zero_shot"},
        }
    }
    runs = {label: run for (label, _), run in comparison(recipe, {}).experiments().items()}
    rates = {label: run.training.optimizer.lr for label, run in runs.items()}
    assert rates == {"words": 2e-4, "classes": 1e-3, "taught": 2e-4, "as_it_is": 2e-4}
    assert {label for label, run in runs.items() if run.wire.up} == {"taught"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((LANGUAGE, "framework=kd"), []),
        ((LANGUAGE, "framework=kd", "wire.up=[]"), ["wire.up tells all 49,152 classes"]),
        (
            (LANGUAGE, "framework=kd", "wire={up: [log_probabilities], down: []}"),
            ["wire.up tells", "wire.down tells"],
        ),
        ((LANGUAGE, "framework={name: kd, direction: server}"), []),
        ((LANGUAGE, "framework=kd", "framework.temperature=2"), ["temperature=2 softens 49,152"]),
        ((LANGUAGE, "training.optimizer.lr=0.001"), ["training.optimizer.lr=0.001 is far"]),
        ((LANGUAGE, "training.optimizer.lr=0.0008"), []),
        (("task=preference", "training.optimizer.lr=0.0002"), ["lr=0.0002 is far"]),
        ((LANGUAGE, "training.optimizer.lr=0.001", "adapter=ia3"), []),
        ((LANGUAGE, "training.optimizer.lr=0.0002", "adapter=full"), ["lr=0.0002 is far"]),
        (("training.optimizer.lr=0.01",), []),
        (("framework=kd",), []),
    ],
)
def test_a_plan_warns_of_what_is_far_from_it(words: tuple[str, ...], said: list[str]) -> None:
    found = list(remarks(config_of(*words), 49_152))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_few_classes_may_all_be_told() -> None:
    assert not list(remarks(config_of(LANGUAGE, "framework=kd", "wire.up=[]"), 44))
