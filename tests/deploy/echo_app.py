"""A Flower app without Trillium: the server asks each node for its name, so often as it is told."""

from __future__ import annotations

from pathlib import Path

PYPROJECT = """
[project]
name = "echo-app"
version = "1.0.0"
description = "Echo"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "trillium"

[tool.flwr.app.components]
serverapp = "echo_app.server:app"
clientapp = "echo_app.client:app"

[tool.flwr.app.config]
mode = "ask"
rounds = 1
text = ""
"""

SERVER = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    print("text", repr(context.run_config["text"]), flush=True)
    if context.run_config["mode"] == "raise":
        raise RuntimeError("told to raise")
    while context.run_config["mode"] == "wait":
        time.sleep(0.1)
    while len(nodes := list(grid.get_nodes())) < 2:
        time.sleep(0.1)
    print("nodes", *sorted(node.name for node in nodes), flush=True)
    for number in range(context.run_config["rounds"]):
        content = RecordDict({"ask": ConfigRecord({"number": number})})
        asks = [Message(content, node.node_id, "query.ask") for node in nodes]
        for reply in grid.send_and_receive(asks, timeout=60):
            print("reply", reply.content["reply"]["name"], number, flush=True)
"""

CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query("ask")
def ask(message, context):
    record = ConfigRecord({"name": context.node_config["name"]})
    return Message(RecordDict({"reply": record}), reply_to=message)
"""


def write(folder: Path) -> Path:
    """Write the app into a folder, and return the folder."""
    package = folder / "echo_app"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(SERVER)
    (package / "client.py").write_text(CLIENT)
    return folder
