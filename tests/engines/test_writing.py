"""`trillium generate --node`: a node runs the first blocks, and all is as in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("flwr", reason="Flower is not installed (extra: deploy)")

from distributed_help import FakeMail
from session_help import ClientThread, server_tls

from checkpoints import checkpoint
from tiny import experiment_config
from trillium.data.deployed import write_rows
from trillium.deploy.prepare import up
from trillium.deploy.writing import write_at
from trillium.engines.distributed import SessionEngine
from trillium.engines.node import Node
from trillium.engines.node_settings import NodeConfig
from trillium.engines.opening import Opening
from trillium.engines.patience import Patience
from trillium.engines.roster import Mail, Online
from trillium.engines.writing import Request, read_answer, read_tokens
from trillium.errors import PeerError, UserError
from trillium.experiment.folder import RunFolder
from trillium.experiment.generation import generate_run
from trillium.experiment.run import build
from trillium.models.stand_ins import is_whole
from trillium.tasks.writing import Writing

PROMPTS = ("the first of two", "a longer one that goes on")
WRITING = Writing(6)


def words(hub: Path, shape: str) -> tuple[str, ...]:
    model = f"model.id={checkpoint(hub, 'gpt2', 'CAUSAL_LM')}"
    split = ("framework=split", f"framework.shape={shape}")
    return (model, "model.random_weights=false", *split, "data.num_clients=1", "rounds=1")


@pytest.mark.parametrize("shape", ["two_part", "u"])
def test_a_node_writes_as_one_process_does(
    hub: Path, keys: Path, tmp_path: Path, shape: str
) -> None:
    config = experiment_config(hub, *words(hub, shape), task="causal_lm")
    run = build(config, RunFolder(tmp_path / "run", "split"))
    run.run()
    expected = generate_run(tmp_path / "run", PROMPTS, WRITING)

    answer, rows = tmp_path / "answer.json", tmp_path / "rows.jsonl"
    write_rows(rows, run.data.clients["client-0"], run.data.labels, config.data.source)
    asked = Request(
        folder=tmp_path / "run", node="a", prompts=PROMPTS, answer=answer, **vars(WRITING)
    )
    opening = Opening(asked.run, asked.config().tree(), asked.labels(), 0)
    node = Node(NodeConfig(name="a", data=rows), opening)
    assert not is_whole(node.client.model.module)
    mail, address = FakeMail(), "127.0.0.1:0"
    mail.online[1] = Online("a", "t0")
    engine = SessionEngine(
        cast(Mail, mail), opening, Patience(10.0, 10.0), bind=address, address=address,
        tls=server_tls(keys),
    )  # fmt: skip
    try:
        engine._invitations.send(opening)
        handlers = {"message": node.handle, "control": node.control}
        ClientThread(keys, engine._sessions.port, "a", mail.tokens["a"][-1], handlers)
        assert engine.gather(1).present == {"a"}
        asked.fulfil(engine)
    finally:
        engine.close(finished=True)
    found = read_answer(answer)
    assert found.crossed is not None
    assert expected.crossed is not None
    assert found == replace(expected, crossed=replace(expected.crossed, client="a"))


@pytest.mark.parametrize("value", [None, [], [[]], [[-1]], [[9]], [[True]], [["1"]], [[1.0]], {}])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(PeerError):
        read_tokens(value, 9)
    assert read_tokens([[0, 8], [1]], 9) == [[0, 8], [1]]


def test_it_says_what_cannot_be_asked_of_a_node(hub: Path, tmp_path: Path) -> None:
    whole = tmp_path / "app" / "trillium_app"
    whole.mkdir(parents=True)
    config = experiment_config(hub, "framework=fedllm", "rounds=1", task="causal_lm")
    build(config, RunFolder(tmp_path / "whole", "fedllm")).run()
    with pytest.raises(UserError, match="no node has a part"):
        write_at(tmp_path / "whole", "a", PROMPTS, WRITING)
    with pytest.raises(UserError, match="no text to continue"):
        write_at(tmp_path / "whole", "a", [" "], WRITING)
    whole.rmdir()
    with pytest.raises(UserError, match="folder of a deployment"):
        write_at(tmp_path / "whole", "a", PROMPTS, WRITING)


@pytest.mark.drill
def test_on_flower(hub: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = experiment_config(hub, *words(hub, "two_part"), task="causal_lm")
    status, folder = up(config, tmp_path / "here", lines.append)
    assert status.completed, lines
    assert folder is not None
    found = write_at(folder, "client-0", PROMPTS, WRITING)
    assert found == generate_run(folder, PROMPTS, WRITING)
    with pytest.raises(UserError, match="client-0"):
        write_at(folder, "client-9", PROMPTS, WRITING)
