"""Flower's simulation engine with an ordinary ClientApp: it loads model and rows in each message.

flower_job.py WORKERS
"""

import sys

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import job

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on the rows of the client that this node plays."""
    k = int(context.node_config["partition-id"])
    own, net = job.rows(f"client-{k}", job.tokenizer()), job.model()
    arrays = message.content.array_records["arrays"]
    job.put(net, arrays.to_torch_state_dict())
    number = int(str(message.content.config_records["config"]["server-round"]))
    loss = job.train(net, own, number * 100003 + k)
    answer = ArrayRecord(job.get(net))
    job.event("bytes", up=answer.count_bytes(), down=arrays.count_bytes())
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(own)})
    return Message(RecordDict({"arrays": answer, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg, and evaluate what it has after each round."""
    net, test = job.model(), job.rows("test", job.tokenizer())

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        job.put(net, arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": job.evaluate(net, test, number)})

    fraction = job.JOB["clients_per_round"] / job.JOB["num_clients"]
    FedAvg(fraction_train=fraction, fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(job.get(net)),
        num_rounds=job.JOB["rounds"],
        evaluate_fn=evaluate,
    )


if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=job.JOB["num_clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": int(sys.argv[1])},
        },
    )
