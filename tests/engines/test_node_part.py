"""A node that has its part of the model alone answers byte for byte as a client in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from checkpoints import checkpoint
from tiny import Recorder, digest, federation, run_rounds
from trillium.data.deployed import write_rows
from trillium.deploy.prepare import deploy
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.models.stand_ins import is_whole


@pytest.mark.parametrize("shape", ["two_part", "u"])
def test_a_node_with_the_folder_of_its_part_answers_as_in_one_process(
    hub: Path, tmp_path: Path, shape: str
) -> None:
    model = checkpoint(hub, "gpt2", "CAUSAL_LM")
    words = (f"model.id={model}", "model.random_weights=false", "model.dropout=0.1")
    own = ("framework=split", f"framework.shape={shape}", "data.public_size=0", "data.set_aside=0")
    fed = federation(hub, *words, *own, task="causal_lm")
    recorder = Recorder(fed)
    run_rounds(fed, 2)

    deploy(fed.config, tmp_path / "federation", ["client-0"], {}, with_part=True)
    part = tmp_path / "federation" / "part"
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, fed.data.clients["client-0"], fed.data.labels, fed.config.data.source)
    settings = NodeConfig(name="client-0", data=rows, model=str(part))
    node = Node(settings, Opening("run", fed.config.tree(), list(fed.data.labels), 0))
    assert not is_whole(node.client.model.module)
    node.settle(0)
    asked = [(ask, reply) for client, ask, reply in recorder.log if client == "client-0"]
    assert len(asked) > 10
    assert [digest(node.handle(ask)) for ask, _ in asked] == [digest(reply) for _, reply in asked]
