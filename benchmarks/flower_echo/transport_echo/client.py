"""The node: sends back what it gets, complemented, or Flower would know it and not send it again."""

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
COMPLEMENT = bytes(range(255, -1, -1))


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Answer with as many bytes."""
    array = message.content.array_records["record"]["data"]
    data = array.data.translate(COMPLEMENT)
    record = ArrayRecord({"data": Array("uint8", array.shape, array.stype, data)})
    return Message(RecordDict({"record": record}), reply_to=message)
