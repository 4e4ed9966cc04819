"""Optimisers by name: PyTorch's own, with its options, and errors that say what to write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import get_scheduler

from trillium.errors import UserError
from trillium.training.optimizers import Optimizer, set_learning_rate
from trillium.training.settings import Training

GIVEN: list[tuple[Any, type[torch.optim.Optimizer], dict[str, Any]]] = [
    ("adamw", torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.0}),
    ({"name": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    ({"name": "adam", "betas": [0.5, 0.9]}, torch.optim.Adam, {"betas": (0.5, 0.9)}),
    (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    ({"name": "adagrad", "lr": 0.5, "eps": 1e-3}, torch.optim.Adagrad, {"lr": 0.5, "eps": 1e-3}),
]


@pytest.mark.parametrize(("given", "cls", "options"), GIVEN, ids=lambda v: str(v)[:40])
def test_it_is_the_optimiser_of_pytorch(
    given: Any, cls: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    built = Optimizer.model_validate(given).build([nn.Parameter(torch.zeros(2))])
    assert type(built) is cls
    assert {key: built.param_groups[0][key] for key in options} == options


def test_steps_are_those_of_pytorch() -> None:
    ours, theirs = (nn.Parameter(torch.arange(3.0)) for _ in range(2))
    mine = Optimizer.model_validate({"name": "adamw", "lr": 0.1, "weight_decay": 0.01}).build(
        [ours]
    )
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        for parameter, optimizer in ((ours, mine), (theirs, plain)):
            parameter.grad = parameter.detach().sin()
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("adamwx", "adamw"),
        ({"name": "sgd", "momentun": 0.9}, "momentum"),
        ({"name": "adam", "betas": [0.5, 2.0]}, r"torch\.optim\.adam"),
        ({"name": "sgd", "momentum": -1.0}, r"torch\.optim\.sgd"),
        ({"name": "sgd", "nesterov": True}, r"torch\.optim\.sgd"),
        ("optimizer", "Choose one of|Did you mean"),
    ],
)
def test_what_pytorch_would_refuse_is_refused_early(given: Any, instead: str) -> None:
    with pytest.raises(ValidationError, match=instead) as caught:
        Optimizer.model_validate(given)
    assert isinstance(caught.value.errors()[0]["ctx"]["error"], UserError)


def test_it_reads_back() -> None:
    given = Optimizer.model_validate({"name": "sgd", "lr": 0.1, "momentum": 0.9})
    assert Optimizer.model_validate(given.model_dump(mode="json")) == given


def test_the_learning_rate_is_set_in_all_groups() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.2)]
    optimizer = torch.optim.SGD(groups)
    set_learning_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_schedules_run_from_the_full_rate_to_nothing() -> None:
    def rates(schedule: str) -> list[float]:
        training = Training.model_validate({"schedule": schedule, "optimizer": {"lr": 0.2}})
        return [training.learning_rate(progress) for progress in (0.0, 0.5, 1.0)]

    assert rates("constant") == [0.2, 0.2, 0.2]
    assert rates("linear") == pytest.approx([0.2, 0.1, 0.0])
    assert rates("cosine") == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_is_that_of_transformers(schedule: str) -> None:
    training = Training.model_validate(
        {"schedule": schedule, "warmup": 0.25, "optimizer": {"lr": 0.2}}
    )
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=20)
    for step in range(20):
        assert training.learning_rate(step / 20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"optimizer": {"name": "adamw", "weight_decay": 0.1}}, r"training\.weight_decay=0\.1"),
        ({"optimizer": "yogi", "weight_decay": 0.1}, "has no weight decay"),
        ({"warmup": 1.0}, "less than 1"),
    ],
)
def test_a_decay_has_one_place(given: dict[str, Any], instead: str) -> None:
    with pytest.raises(ValidationError, match=instead):
        Training.model_validate(given)


@pytest.mark.parametrize(
    ("options", "examples", "steps"),
    [
        ({"batch_size": 4}, 8, 2),
        ({"batch_size": 4}, 9, 3),
        ({"batch_size": 4, "local_epochs": 3}, 9, 9),
        ({"batch_size": 4, "local_epochs": 3, "local_steps": 5}, 9, 5),
        ({"batch_size": 64}, 1, 1),
    ],
)
def test_steps_of_a_round(options: dict[str, Any], examples: int, steps: int) -> None:
    assert Training(**options).num_steps(examples) == steps


def test_three_steps_of_yogi_by_hand() -> None:
    """Reddi et al. (2021), algorithm 2, in plain arithmetic; the signs of the rule differ by step."""
    lr, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    given = Optimizer.model_validate({"name": "yogi", "lr": lr})
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = given.build([parameter])
    x, m, v = [1.0, -2.0], [0.0, 0.0], [tau**2, tau**2]
    for gradient in ([0.5, -0.25], [0.01, 0.0], [-2.0, 0.125]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            m[i] = beta1 * m[i] + (1 - beta1) * g
            sign = (v[i] > g * g) - (v[i] < g * g)
            v[i] = v[i] - (1 - beta2) * g * g * sign
            x[i] = x[i] - lr * m[i] / (v[i] ** 0.5 + tau)
        assert parameter.tolist() == pytest.approx(x, rel=1e-12)
    adam = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    adam.grad = torch.tensor([0.5, -0.25], dtype=torch.float64)
    torch.optim.Adam([adam], lr=lr, eps=tau).step()
    assert abs(adam.tolist()[0] - 1.0) == pytest.approx(lr, rel=1e-2)  # corrected, unlike ours


def test_yogi_goes_on_from_its_state() -> None:
    def steps(interrupt: bool) -> list[float]:
        parameter = nn.Parameter(torch.arange(3.0))
        given = Optimizer.model_validate({"name": "yogi", "lr": 0.1, "betas": [0.8, 0.9]})
        optimizer = given.build([parameter])
        for number in range(4):
            if interrupt and number == 2:
                optimizer = given.build([parameter], optimizer.state_dict())
            parameter.grad = (parameter.detach() + number).cos()
            optimizer.step()
        found: list[float] = parameter.tolist()
        return found

    assert steps(interrupt=True) == steps(interrupt=False)


@pytest.mark.parametrize("option", [{"betas": [0.5, 1.0]}, {"eps": 0.0}, {"weight_decay": 0.1}])
def test_what_yogi_does_not_do_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="yogi"):
        Optimizer.model_validate({"name": "yogi", **option})
