"""What is folded into base weights is kept and sent as weights, once factors would outweigh them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import Recorder, distance, experiment_config, federation, run_round, run_rounds
from trillium.experiment.folder import RunFolder
from trillium.experiment.run import SERVER, build
from trillium.frameworks.fedllm.folds import send_folds
from trillium.models.factors import Factors, LowRank
from trillium.models.folds import BaseWeights, fold_into, weigh
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, decode, named

pytestmark = pytest.mark.usefixtures("uncounted")

FAST = ("training.local_steps=1", "training.batch_size=8", "data.num_clients=2", "rounds=8")
FEDEX = (
    "framework.aggregator=fedex",
    "adapter.r=2",
)  # of rank 2: three folds weigh less than weights


def test_neither_checkpoints_nor_downloads_grow_with_the_rounds(hub: Path, tmp_path: Path) -> None:
    config = experiment_config(hub, *FAST, *FEDEX, model="bert")
    fed = build(config, RunFolder(tmp_path / "run", "run"))
    assert fed.folder is not None
    sizes, keep = [], fed.folder.checkpoints.keep
    path = tmp_path / "run" / "checkpoints"
    log = Recorder(fed)
    config.framework.start(fed.server, fed.fleet)
    for number in range(1, 9):
        run_round(fed, number)
        keep(SERVER, number, {"store": fed.server.store})
        sizes.append((path / f"{SERVER}@{number}.pt").stat().st_size)
        folds = fed.server.store.get("folds", [])
        weights = sum(tensor.nbytes for tensor in fed.server.base.values())
        assert not folds or sum(map(weigh, folds)) < weights
    # In the first round all factors A are still the same, and nothing is left to fold.
    assert fed.server.store["dropped_folds"] + len(folds) == 7
    assert 0 < len(folds) < 5
    assert sizes[-1] < 1.02 * sizes[4]
    # Those who were there got the latest factors; who begins anew gets no more than the weights.
    fed.fleet.newcomers = {"client-0"}
    log.log.clear()
    send_folds(fed.server, fed.fleet)
    sent = {client: request for client, request, _ in log.log}
    assert decode(sent["client-0"]).meta["number"] == 7
    assert "ranks" in decode(sent["client-1"]).meta
    assert len(sent["client-1"]) < len(sent["client-0"]) < 1.2 * weights
    for client in fed.clients:  # bit for bit, whichever way it came
        assert distance(client.base, fed.server.base) == 0.0
        assert client.store["num_folds"] == 7


def test_clients_that_miss_rounds_come_to_the_same_weights(hub: Path) -> None:
    words = (*FAST, *FEDEX, "data.num_clients=4", "fleet.clients_per_round=2")
    fed = federation(hub, *words, model="gpt2")
    run_rounds(fed, 8)
    fed.fleet.asked = [client.name for client in fed.clients]
    send_folds(fed.server, fed.fleet)
    for client in fed.clients:
        assert distance(client.base, fed.server.base) == 0.0


def test_small_changes_add_up_in_half_precision() -> None:
    """Each by itself would be rounded away."""
    layer = torch.nn.Module()
    layer.base_layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(layer.base_layer.weight)
    factors = [Factors("base_layer.weight", "a", "b", 1.0, False)]
    weights, base = BaseWeights(layer, factors), dict[str, torch.Tensor]()
    small = LowRank(torch.full((4, 1), 1e-3), torch.ones(1, 4))
    for _ in range(100):
        base = fold_into(base, {"base_layer.weight": small}, factors, weights.original)
    weights.mount(base)
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert torch.allclose(layer.base_layer.weight.float(), torch.tensor(1.1), atol=5e-3)


@pytest.mark.parametrize(
    "meta",
    [
        {"number": 0, "layers": []},
        {"number": True, "layers": []},
        {"number": 2},
        {"number": 2, "layers": ["elsewhere.weight"]},
        {"number": 2, "layers": [["a"]]},
    ],
)
def test_weights_that_do_not_fit_are_refused(hub: Path, meta: dict[str, object]) -> None:
    fed = federation(hub, *FAST, *FEDEX, model="bert")
    client = fed.clients[0]
    message = Message("fold", named("snapshot", {"elsewhere.weight": torch.ones(2)}), meta)
    with pytest.raises(MessageError, match="base weights"):
        client.verbs["fold"](client, message)
    assert "base" not in client.store
