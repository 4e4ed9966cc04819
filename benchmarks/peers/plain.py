"""Federated averaging as a loop in one process, with no system around it."""

import torch

import job

tokens, net = job.tokenizer(), job.model()
clients = [job.rows(f"client-{k}", tokens) for k in range(job.JOB["num_clients"])]
test, state = job.rows("test", tokens), job.get(net)
job.evaluate(net, test, 0)
for number in range(1, job.JOB["rounds"] + 1):
    drawn = torch.Generator().manual_seed(number)
    chosen = torch.randperm(len(clients), generator=drawn)[: job.JOB["clients_per_round"]].tolist()
    total, weight = {name: torch.zeros_like(tensor) for name, tensor in state.items()}, 0
    for k in chosen:
        job.put(net, state)
        job.train(net, clients[k], number * 100003 + k)
        weight += len(clients[k])
        for name, tensor in job.get(net).items():
            total[name] += len(clients[k]) * tensor
    state = {name: tensor / weight for name, tensor in total.items()}
    job.put(net, state)
    job.evaluate(net, test, number)
