"""What a masked sum costs, for a semi-honest server, beside int8 and Flower's SecAgg+: bytes, seconds.

Clients have random vectors in the place of updates. Some are lost in each phase. The sum must be that
of the whole numbers of those who have answered, to the last bit, or the script fails. Of Flower's
SecAgg+ its own functions of one client are run, with as many peers.

    OMP_NUM_THREADS=1 python benchmarks/secure_sum.py
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from measured import write_found
from trillium.federation.masked import MaskedSums
from trillium.federation.sums import Form, Read
from trillium.privacy.integers import Grid
from trillium.privacy.masks import Masks
from trillium.privacy.phases import REVEAL, SHARES
from trillium.privacy.sums import Masked
from trillium.wire.addend import Addend
from trillium.wire.codecs.integers import Int8
from trillium.wire.message import Message
from trillium.wire.wire import Wire

RESULTS = Path(__file__).resolve().parent / "results"
# A function of the same name hides the module.
flower: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
ADD, NAME = "train", "parameters/update"
WIRE = Wire()
LOST = {10: (1, 1, 1), 100: (3, 10, 5)}  # clients, before they share, answer, reveal
T = TypeVar("T")


@dataclass
class Keeper:
    """The side of a client or of the server."""

    name: str
    seed: int = 0
    round: int = 1
    store: dict[str, Any] = field(default_factory=dict)

    def lasting(self, purpose: str) -> bytes:
        """Return a secret, the same for the same purpose."""
        return hashlib.sha256(f"{self.name} {purpose}".encode()).digest()


@dataclass
class Federation:
    """Asks clients in this process, and notes what that takes.

    Attributes:
        seconds: of clients, by verb, one entry an answer.
        bytes_up, bytes_down: the same.
    """

    clients: dict[str, Masks]
    vectors: dict[str, torch.Tensor]
    lost: dict[str, set[str]]
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bytes_up: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    bytes_down: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    answered: list[str] = field(default_factory=list)

    def ask(self, requests: Mapping[str, Message], read: Read[T]) -> Iterator[tuple[str, T]]:
        """Do as a fleet does."""
        for name, message in requests.items():
            if name in self.lost.get(message.verb, ()):
                continue
            data = self.data(message)
            start = time.process_time()
            came = WIRE.unpack(data, "down").message
            if message.verb == ADD:
                reply = Message(ADD, summed=Addend({NAME: self.vectors[name]}))
                self.answered.append(name)
            else:
                reply = self.clients[name].verbs[message.verb](None, came)
            back = WIRE.pack(self.clients[name].closed(reply, came, data), "up").data
            self.seconds[message.verb].append(time.process_time() - start)
            self.bytes_up[message.verb].append(len(back))
            self.bytes_down[message.verb].append(len(data))
            answer = WIRE.unpack(back, "up").message
            yield name, (read if callable(read) else read[name])(answer)

    def data(self, message: Message) -> bytes:
        """Return a message as it crosses."""
        return WIRE.pack(replace(message, meta={**message.meta, "round": 1}), "down").data


def ours(count: int, entries: int, bits: int, peers: int) -> dict[str, Any]:
    """Return what one sum takes of a client and of the server."""
    masked, draw = Masked(bits=bits, peers=peers), torch.Generator().manual_seed(0)
    names = [f"client-{number:03}" for number in range(count)]
    early, late, last = LOST[count]
    lost = {
        SHARES: {*names[:early]},
        ADD: {*names[early : early + late]},
        REVEAL: {*names[early + late : early + late + last]},
    }
    need = count - early - late - last
    clients = {name: Masks(masked, Keeper(name), need) for name in names}
    vectors = {name: torch.randn(entries, generator=draw) for name in names}
    federation = Federation(clients, vectors, lost)
    server = MaskedSums(masked, cast(Any, Keeper("server")))
    reach = 6.0  # as a sum before would have said: later sums are measured, not the first, wide one
    server.side.store["sums"] = {"ranges": {NAME: reach}}
    form = Form({"parameters": {"update": torch.zeros(entries)}})
    message = Message(ADD, {"parameters/state": torch.zeros(1)})
    start = time.process_time()
    found = server.total(
        dict.fromkeys(names, message),
        form,
        federation.ask,
        lambda sent: hashlib.sha256(federation.data(sent)).digest(),
        need,
        (),
    )
    total = time.process_time() - start
    grid = Grid({NAME: (entries,)}, [reach], bits, count - early)
    plain = sum(grid.write({NAME: vectors[n]}).astype(np.int64) for n in federation.answered)
    mean = grid.read(cast(Any, plain), len(federation.answered)).tensors[NAME]
    assert torch.equal(mean, found.tensors[NAME]), "the sum is not that of the whole numbers"
    assert len(federation.answered) == count - early - late
    truth = torch.stack([vectors[name] for name in federation.answered]).double().mean(0)
    int8 = Wire(up=(Int8(),)).pack(Message(ADD, {"parameters/flat": vectors[names[0]]}), "up")
    up = {verb: statistics.mean(sizes) for verb, sizes in federation.bytes_up.items()}
    phases = (SHARES, ADD, REVEAL)
    whole = sum(up[verb] for verb in phases)
    client = {verb: statistics.mean(federation.seconds[verb]) for verb in phases}
    return {
        "bits_of_an_entry": grid.bits,
        "lost": LOST[count],
        "bytes_up": whole,
        "bytes_up_of_the_protocol": whole - grid.bits * entries / 8,
        "bytes_down": sum(statistics.mean(federation.bytes_down[verb]) for verb in phases),
        "bytes_up_of_int8": len(int8.data),
        "of_int8": whole / len(int8.data),
        "seconds_of_a_client": {**client, "all": sum(client.values())},
        "seconds_of_the_server": total - sum(sum(all_) for all_ in federation.seconds.values()),
        "relative_error": float((found.tensors[NAME] - truth).norm() / truth.norm()),
    }


def flowers(peers: int, entries: int, threshold: int) -> dict[str, Any]:
    """Return what Flower's SecAgg+ takes of one client with so many peers, itself among them."""
    settings = {
        Key.SAMPLE_NUMBER: peers,
        Key.SHARE_NUMBER: peers,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 22,  # Flower's own defaults, as is the one before
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    states = [flower.SecAggPlusState(nid=number + 1) for number in range(peers)]
    seconds: dict[str, float] = {}
    for state in reversed(states):  # the first one last, which is timed
        start = time.process_time()
        flower._setup(state, cast(Any, settings))
        seconds["keys"] = time.process_time() - start
    keys = {str(s.nid): (s.pk1, s.pk2) for s in states}
    start = time.process_time()
    sent = flower._share_keys(states[0], cast(Any, keys))
    seconds["shares"] = time.process_time() - start
    boxes = []
    for state in states[1:]:
        shared = generate_shared_key(
            bytes_to_private_key(state.sk2), bytes_to_public_key(states[0].pk2)
        )
        text = share_keys_plaintext_concat(state.nid, 1, os.urandom(52), os.urandom(260))
        boxes.append(encrypt(shared, text))
    sources = [state.nid for state in states[1:]]
    came: Any = {Key.CIPHERTEXT_LIST: boxes, Key.SOURCE_LIST: sources}
    update = ndarrays_to_parameters([np.random.default_rng(0).normal(size=entries).astype("f4")])
    start = time.process_time()
    masked = flower._collect_masked_vectors(states[0], came, 1, update)
    seconds["train"] = time.process_time() - start
    up = sum(map(len, cast(list[bytes], masked[Key.MASKED_PARAMETERS])))
    up += sum(map(len, cast(list[bytes], sent[Key.CIPHERTEXT_LIST])))
    return {"bytes_up": up, "seconds_of_a_client": {**seconds, "all": sum(seconds.values())}}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100], choices=[*LOST])
    parser.add_argument("--entries", type=int, default=1_000_000, help="of a vector")
    parser.add_argument("--bits", type=int, default=Masked().bits)
    parser.add_argument("--peers", type=int, default=Masked().peers)
    parser.add_argument("--out", type=Path, default=RESULTS / "secure_sum.json")
    args = parser.parse_args()
    load, results = os.getloadavg()[0], {}
    for count in args.clients:
        own = ours(count, args.entries, args.bits, args.peers)
        size = min(count, args.peers // 2 * 2 + 1)
        other = flowers(size, args.entries, size // 2 + 1)
        whole = other if size == count else flowers(count, args.entries, count // 2 + 1)
        mine = own["seconds_of_a_client"]["all"]
        theirs, all_peers = (found["seconds_of_a_client"]["all"] for found in (other, whole))
        own |= {
            "of_flowers_bytes": own["bytes_up"] / other["bytes_up"],
            "times_faster_than_flower": theirs / mine,
            "times_faster_than_flower_with_all_as_peers": all_peers / mine,
        }
        results[str(count)] = {"trillium": own, "flower": other, "flower_with_all_as_peers": whole}
        print(
            f"{count} clients: {own['bytes_up'] / 1e6:.2f} MB up, {own['of_int8']:.2f} of int8, "
            f"{own['of_flowers_bytes']:.2f} of Flower's; a client {mine:.2f} s, "
            f"Flower's {theirs:.1f} s, with all as peers {all_peers:.1f} s; "
            f"the server {own['seconds_of_the_server']:.1f} s; error {own['relative_error']:.4f}"
        )
    goals = {
        "of_int8": {"10": 1.5, "100": 1.9},
        "of_flowers_bytes": 0.3,
        "times_faster_than_flower_with_all_as_peers": {"100": 20},
    }
    write_found(args.out, load, results, entries=args.entries, clock="processor", goals=goals)


if __name__ == "__main__":
    main()
