"""Split learning by SplitLoRA's schedule (Lin et al., 2024), with a process on each side of a pipe.

Each client's blocks have an adapter and an optimiser of their own; what they make of their batches goes
over the pipe at once, and the server takes one step on all of it. After a round the clients' adapters
are averaged.
"""

import copy
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

import job

CUT = job.JOB["cut"]


def blocks(net: nn.Module) -> tuple[Any, nn.ModuleList, nn.ModuleList]:
    """Return the classifier, and the blocks on either side of the cut."""
    whole: Any = net.base_model.model  # type: ignore[union-attr]
    layers = whole.bert.encoder.layer
    return whole, layers[:CUT], layers[CUT:]


def packed(tensor: Tensor) -> tuple[bytes, tuple[int, ...]]:
    """Return the bytes of a tensor, and its shape."""
    return tensor.detach().contiguous().numpy().tobytes(), tuple(tensor.shape)


def unpacked(found: tuple[bytes, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor."""
    data, shape = found
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def through(layers: nn.ModuleList, hidden: Tensor, mask: Tensor) -> Tensor:
    """Run blocks."""
    for layer in layers:
        hidden = layer(hidden, mask.bool()[:, None, None])
    return hidden


def clients(pipe: Connection) -> None:
    """Be all clients: send activations, receive gradients, and average after each round."""
    tokens, net = job.tokenizer(), job.model()
    whole, front, _ = blocks(net)
    shared = {id(p): p for p in front.parameters() if not p.requires_grad}
    own = [job.rows(f"client-{k}", tokens) for k in range(job.JOB["num_clients"])]
    fronts = [copy.deepcopy(front, dict(shared)).train() for _ in own]
    weights = torch.tensor([len(rows) for rows in own]) / sum(map(len, own))
    for number in range(1, job.JOB["rounds"] + 1):
        chunks = [job.batches(rows, number * 100003 + k) for k, rows in enumerate(own)]
        adapters = [[p for p in part.parameters() if p.requires_grad] for part in fronts]
        optimizers = [torch.optim.AdamW(some, lr=job.LR, weight_decay=0.0) for some in adapters]
        for step in range(max(map(len, chunks))):
            asked = [k for k in range(len(own)) if step < len(chunks[k])]
            sent, made = [], []
            for k in asked:
                ids, mask, labels = job.collate(chunks[k][step])
                with torch.no_grad():
                    hidden = whole.bert.embeddings(input_ids=ids)
                made.append(through(fronts[k], hidden, mask))
                sent.append((packed(made[-1]), packed(mask), labels.tolist()))
            pipe.send(sent)
            for k, hidden, gradient in zip(asked, made, pipe.recv(), strict=True):
                torch.autograd.backward(hidden, unpacked(gradient))
                nn.utils.clip_grad_norm_(adapters[k], 1.0)
                optimizers[k].step()
                optimizers[k].zero_grad(set_to_none=True)
        with torch.no_grad():
            for parts in zip(*adapters, strict=True):
                mean = sum(w * p for w, p in zip(weights, parts, strict=True))
                for part in parts:
                    part.copy_(mean)
        pipe.send([packed(p) for p in adapters[0]])
    pipe.close()


def server(pipe: Connection) -> None:
    """Train the blocks behind the cut, and measure the whole model after each round."""
    tokens, net = job.tokenizer(), job.model()
    whole, front, back = blocks(net)
    test, own = job.rows("test", tokens), job.trained(net)
    before = {id(p) for p in front.parameters()}
    trained = [p for p in own.values() if id(p) not in before]
    job.evaluate(net, test, 0)
    for number in range(1, job.JOB["rounds"] + 1):
        net.train()
        optimizer = torch.optim.AdamW(trained, lr=job.LR, weight_decay=0.0)
        while isinstance((found := pipe.recv())[0][0], tuple):
            hidden = [unpacked(sent).requires_grad_() for sent, _, _ in found]
            masks = [unpacked(mask, torch.int64) for _, mask, _ in found]
            longest = max(tensor.shape[1] for tensor in hidden)
            padded = [nn.functional.pad(h, (0, 0, 0, longest - h.shape[1])) for h in hidden]
            seen = torch.cat([nn.functional.pad(m, (0, longest - m.shape[1])) for m in masks])
            pooled = whole.bert.pooler(through(back, torch.cat(padded), seen))
            logits = whole.classifier(whole.dropout(pooled))
            labels = torch.tensor([label for _, _, some in found for label in some])
            torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            pipe.send([packed(h.grad) for h in hidden if h.grad is not None])
        with torch.no_grad():
            for parameter, mean in zip(
                (p for p in front.parameters() if p.requires_grad), found, strict=True
            ):
                parameter.copy_(unpacked(mean))
        job.evaluate(net, test, number)


if __name__ == "__main__":
    ours, theirs = get_context("spawn").Pipe()
    other = get_context("spawn").Process(target=clients, args=(theirs,))
    other.start()
    server(ours)
    other.join()
