"""A client by NVFlare's Client API: it loads its model once, then trains per task."""

import nvflare.client as flare
import torch
from torch import nn

import job


class Exchanged(nn.Module):
    """What is exchanged, as a model of NVFlare's: the factors of LoRA and the head."""

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in torch.load(job.FOLDER / "start.pt").items():
            self.register_parameter(name.replace(".", "__"), nn.Parameter(tensor))


def main() -> None:
    """Answer tasks; the first client measures what it gets, as the server has no place for it."""
    flare.init()
    k = int(flare.get_site_name().split("-")[1]) - 1
    tokens, net = job.tokenizer(), job.model()
    own, test = job.rows(f"client-{k}", tokens), job.rows("test", tokens)
    while flare.is_running():
        task = flare.receive()
        if task is None:
            break
        number = int(task.current_round)
        state = {name.replace("__", "."): torch.as_tensor(t) for name, t in task.params.items()}
        job.put(net, state)
        found = {"accuracy": job.evaluate(net, test, number)} if k == 0 else {}
        job.train(net, own, (number + 1) * 100003 + k)
        answer = {name.replace(".", "__"): tensor for name, tensor in job.get(net).items()}
        job.event("bytes", up=sum(tensor.nbytes for tensor in answer.values()))
        meta = {"NUM_STEPS_CURRENT_ROUND": len(own)}
        flare.send(flare.FLModel(params=answer, metrics={"accuracy": 0.0, **found}, meta=meta))


if __name__ == "__main__":
    main()
