"""The server: sends what the benchmark hands over to the node, and says how many bytes came back."""

import time
from multiprocessing.connection import Client

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
POLL_SECONDS = 0.1  # as Trillium's own messages; Flower's send_and_receive looks every 3 s


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make round trips until the benchmark hangs up."""
    while not (nodes := list(grid.get_nodes())):
        time.sleep(POLL_SECONDS)
    with Client(str(context.run_config["socket"])) as benchmark:
        while True:
            try:
                data = benchmark.recv_bytes()
            except EOFError:
                return
            benchmark.send_bytes(str(trip(grid, nodes[0].node_id, data)).encode())


def trip(grid: Grid, node: int, data: bytes) -> int:
    """Send bytes to the node and return how many came back."""
    record = ArrayRecord({"data": Array("uint8", (len(data),), "bytes", data)})
    asked = grid.push_messages([Message(RecordDict({"record": record}), node, "query.echo")])
    while not (replies := list(grid.pull_messages(asked))):
        time.sleep(POLL_SECONDS)
    return len(replies[0].content.array_records["record"]["data"].data)
