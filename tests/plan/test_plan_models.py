"""Models on paper: public shapes have the sizes that are published, and depth costs what it costs."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from trillium.config.experiment import ExperimentConfig, experiment, parse_overrides
from trillium.errors import UserError
from trillium.models import base
from trillium.models.packaged import HUB_IDS
from trillium.plan import grow, models
from trillium.plan.data import Assumptions, assumed_texts
from trillium.plan.models import Models, architecture
from trillium.plan.predict import Prediction, predict
from trillium.plan.shapes import shapes

# Parameters in millions, as the model cards state them.
PUBLISHED = {
    "gpt2": 124.4,
    "bert-base-uncased": 109.5,
    "roberta-base": 124.6,
    "llama-3-8b": 8030.3,
    "llama-3-70b": 70553.7,
    "smollm2-135m": 134.5,
    "smollm2-135m-instruct": 134.5,
    "smollm2-360m": 361.8,
    "smollm2-1.7b": 1711.4,
    "qwen2.5-0.5b": 494.0,
    "qwen3-4b": 4022.5,
    "mistral-7b": 7241.7,
    "gemma-2b": 2506.2,
    "phi-2": 2779.7,
    "phi-4": 14659.5,
    "mistral-7b-v0.3": 7248.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_sizes(name: str) -> None:
    shape = shapes()[name]
    auto = AutoModel if shape.model_type in ("bert", "roberta") else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(shape.config())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1) == PUBLISHED[name]


def test_every_shape_says_where_it_stands() -> None:
    for name, shape in shapes().items():
        assert "/" in shape.source, name
        assert shape.config().model_type == shape.model_type


def test_an_architecture_without_fused_attention_says_what_to_write() -> None:
    words = ("model.id=gemma-2-2b", "task=causal_lm", "framework=fedllm")
    with pytest.raises(UserError, match=r"model\.attention=eager"):
        planned(configured(*words, "model.attention=sdpa"))
    assert planned(configured(*words)).num_parameters > 2e9


@pytest.mark.parametrize("name", HUB_IDS)
def test_a_model_of_a_package_is_planned_without_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "locate", None)
    task = "causal_lm" if name == "smollm2" else "classification"
    known, own = (
        configured(f"model.id={model}", f"task={task}") for model in (HUB_IDS[name], name)
    )
    assert architecture(own, 2).to_dict() == architecture(known, 2).to_dict()


def test_a_known_shape_is_planned_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "locate", None)
    assert planned(configured("model.id=gpt2", "task=causal_lm", "framework=fedllm")).num_trained


def configured(*words: str) -> ExperimentConfig:
    return experiment(parse_overrides(["model.id=gpt2", "data.num_clients=2", "rounds=1", *words]))


def planned(config: ExperimentConfig, tokens: int = 32) -> Prediction:
    return predict(config, assumed_texts(config, Assumptions(examples=16, tokens=tokens)))


DEEP = {
    "fedllm": ["framework=fedllm"],
    "split": ["framework={name: split, shape: u, cut: 4, tail: 9}"],
    "checkpoints": ["framework=fedllm", "training.gradient_checkpointing=true"],
    "checkpoints, split": [
        "framework={name: split, cut: 6}",
        "training.gradient_checkpointing=true",
    ],
    "full": ["framework=fedllm", "adapter=full"],
    "full, sgd": ["framework=fedllm", "adapter=full", "training.optimizer={name: sgd, lr: 0.1}"],
    "full, kd": ["framework=kd", "adapter=full", "data.public_size=16"],
    "full, split": [
        "framework={name: split, cut: 6}",
        "adapter=full",
        "model.id=bert-base-uncased",
    ],
}


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        pytest.param(
            words,
            tokens,
            id=f"{name}-{tokens}",
            marks=[]
            if name in ("full", "split", "checkpoints") and tokens == 64
            else pytest.mark.slow,
        )
        for name, words in DEEP.items()
        for tokens in (16, 64)
    ],
)
def test_few_blocks_tell_the_cost_of_many(
    words: list[str], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few tokens the optimiser's step takes most memory, with many the pass before it does."""
    config = configured(*words)
    few = planned(config, tokens)
    monkeypatch.setattr(grow, "_blocks", lambda *_: None)
    monkeypatch.setattr(Models, "_equal_blocks", lambda *_: 0)
    whole = planned(config, tokens)
    assert few.num_parameters == whole.num_parameters
    assert few.num_trained == whole.num_trained
    assert few.total.up.bytes == whole.total.up.bytes
    assert few.total.flops == pytest.approx(whole.total.flops, rel=1e-9)
    assert few.server_flops == pytest.approx(whole.server_flops, rel=1e-9)
    assert few.total.peak_bytes == pytest.approx(whole.total.peak_bytes, rel=0.001)
    assert few.server_peak_bytes == pytest.approx(whole.server_peak_bytes, rel=0.001)


def test_blocks_that_run_again_take_less_memory_for_more_compute() -> None:
    plain, again = (
        planned(configured("framework=fedllm", f"training.gradient_checkpointing={word}"), 64)
        for word in ("false", "true")
    )
    assert 1.4 < again.total.flops / plain.total.flops < 1.51
    memories = [found.memory["client-0"] for found in (plain, again)]
    assert memories[1].activations < memories[0].activations / 3
    assert memories[1].weights == memories[0].weights


@pytest.mark.parametrize("model", ["distilgpt2", "all-minilm-l6-v2", "qwen2.5-0.5b"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_not_random_crosses_once(model: str, dropout: float) -> None:
    words = [f"model.id={model}", "framework={name: split, train: server}", "rounds=3"]
    config = configured(*words, f"model.dropout={dropout}", "adapter={name: lora, dropout: 0}")
    found = planned(config)
    crosses_again = found.later["client-0"].up.kinds.get("activations", 0) > 0
    assert crosses_again == (dropout > 0)


def test_assumed_texts_are_not_one_text() -> None:
    """Of samples that are alike the activations would cross once: 16 of 32 tokens, 768 floats each."""
    words = ["framework={name: split, train: server, cut: 1}", "model.dropout=0"]
    found = planned(configured(*words, "task=causal_lm"))
    assert found.clients["client-0"].up.kinds["activations"] == pytest.approx(
        16 * 32 * 768 * 4, rel=1e-3
    )


def test_no_weight_exists() -> None:
    """Seventy billion parameters in two bytes would be 141 GB."""
    config = experiment(
        parse_overrides(["model.id=llama-3-70b", "model.dtype=bfloat16", "task=causal_lm"])
    )
    found = predict(config, assumed_texts(config, Assumptions(examples=8, tokens=16)))
    assert found.num_parameters > 70e9
    assert found.clients["client-0"].peak_bytes > 141e9
