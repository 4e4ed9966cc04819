"""What the server keeps of activations that it is sent once: a file of records, and who has which.

With nothing random and nothing trained in front of the cut, an activation is a function of the
sample. It stays as its codec has written it, on disk and in memory, and is decoded batch by batch.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from trillium.errors import UserError
from trillium.frameworks.split.pooled import Forwarded, in_batch
from trillium.frameworks.split.ragged import mask_of, spread
from trillium.tasks import Task
from trillium.wire.records import Records
from trillium.wire.rows import EncodedRows, Layout

FILE: Final = "activations.bin"
DIGEST: Final = 16  # bytes
_LABEL: Final = 4  # bytes of a label


def digest_of(input_ids: Tensor, beside: Tensor) -> str:
    """Return what tells one sample from another.

    Args:
        beside: what is sent beside its activations. Labels that are not sent must have no part in a
            hash: whoever knows the text can try them all.
    """
    state = blake2b(digest_size=DIGEST)
    for tensor in (input_ids, beside):
        state.update(f"{tuple(tensor.shape)}".encode())
        state.update(tensor.to(torch.int64).contiguous().numpy().tobytes())
    return state.hexdigest()


def digest_of_all(digests: Sequence[str]) -> str:
    """Return a hash of the digests of some samples, in order."""
    return blake2b("".join(digests).encode(), digest_size=DIGEST).hexdigest()


@dataclass(frozen=True)
class Cached:
    """Where the activations of one sample lie.

    Attributes:
        start: the first byte in the file; behind the records lie the labels.
        num_labels: those of a text, or one for each token.
        source: number of what the activations have passed (see `ActivationCache.add`).
    """

    start: int
    num_tokens: int
    num_labels: int
    layout: int
    key: int
    source: int


class ActivationCache:
    """Encoded activations of the samples of all clients, with labels or what stands for them.

    The index lies in `store`, which a checkpoint holds; the records lie in a file, which only grows.
    A file that is longer than the index says is cut back: that is what a run wrote after its last
    checkpoint.

    Args:
        store: what is kept between rounds; written to.
        folder: where the file lies; in a temporary file without one.

    Raises:
        UserError: the file is shorter than the index says.
    """

    def __init__(self, store: dict[str, Any], folder: Path | None, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        store.setdefault("end", 0)
        store.setdefault("layouts", [])
        self._clients: dict[str, Any] = store.setdefault("clients", {})
        self._layouts = [Layout.from_json(text) for text in store["layouts"]]
        self._path = None if folder is None else folder / FILE
        self._records = Records(_open(self._path, store["end"]), store["end"])
        self._held = {client: _index(found) for client, found in self._clients.items()}

    def lacking(self, client: str, digests: Sequence[str]) -> list[int]:
        """Return the positions of samples that are not here, each of several equal ones once."""
        seen = set(self._held.get(client, {}))
        positions = []
        for position, digest in enumerate(digests):
            if digest not in seen:
                seen.add(digest)
                positions.append(position)
        return positions

    def state_of(self, client: str) -> str:
        """Return a hash of the samples of a client that the pool has, in its order."""
        return digest_of_all(self._order(client))

    def announce(self, client: str, digests: Sequence[str]) -> None:
        """Note which samples a client has now, in its order; others of it leave the pool."""
        none = {"digests": [], "places": torch.zeros(0, 6, dtype=torch.int64)}
        self._clients.setdefault(client, none)["order"] = list(digests)

    def add(
        self,
        client: str,
        digests: Sequence[str],
        lengths: Sequence[int],
        rows: EncodedRows,
        labels: Tensor,
        *,
        per_token: bool,
        source: int = 0,
    ) -> None:
        """Take in the activations of some samples of a client that has announced itself.

        Args:
            labels: numbers, equally many for each sample, or one for each token (`per_token`); where
                they stay with the client, how many predictions of each sample count.

        Raises:
            UserError: there is no room for them.
        """
        layout, records = self._number(rows.layout), rows.records()
        each = len(labels) // max(len(lengths), 1)
        own_labels = torch.split(labels.int().cpu(), list(lengths) if per_token else each)
        content, places, start = [], [], self.nbytes
        for own, label in zip(torch.split(records, list(lengths)), own_labels, strict=True):
            content += [own, label]
            places.append([start, len(own), len(label), layout, rows.key, source])
            start += own.nbytes + label.nbytes
        self._append(content)
        found = self._clients[client]
        found["digests"] += digests
        found["places"] = torch.cat([found["places"], torch.tensor(places)])
        cached = [Cached(*place) for place in places]
        self._held.setdefault(client, {}).update(zip(digests, cached, strict=True))

    def pool(self) -> list[Cached]:
        """Return all samples of all clients, by client and in the client's order."""
        return [sample for client in sorted(self._clients) for sample in self.samples(client)]

    def samples(self, client: str) -> list[Cached]:
        """Return the samples of one client, in its order."""
        return [self._held[client][digest] for digest in self._order(client)]

    def rows(self, samples: Sequence[Cached]) -> Tensor:
        """Return the decoded activations `(tokens, width)` of samples, one after the other."""
        together: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position, sample in enumerate(samples):
            together[sample.layout, sample.key].append(position)
        found: dict[int, Tensor] = {}
        for (layout, key), positions in together.items():
            width = self._layouts[layout].length
            records = [self._rows_of(samples[position], width) for position in positions]
            rows = self._layouts[layout].decode(torch.cat(records), key)
            sizes = [samples[position].num_tokens for position in positions]
            found |= dict(zip(positions, torch.split(rows, sizes), strict=True))
        return torch.cat([found[position] for position in range(len(samples))])

    def labels(self, samples: Sequence[Cached]) -> list[Tensor]:
        """Return the numbers that stand for the labels of samples, each `(labels,)` int32."""
        found = []
        for sample in samples:
            start = sample.start + sample.num_tokens * self._layouts[sample.layout].length
            content = self._records.read(start, sample.num_labels * _LABEL)
            found.append(content.clone().view(torch.int32))
        return found

    def batch(
        self,
        samples: Sequence[Cached],
        task: Task | None,
        rows: Tensor | None = None,
        positions: tuple[int, ...] = (),
        *,
        num_outputs: int,
    ) -> Forwarded:
        """Return samples as a batch, padded on the right.

        Args:
            num_outputs: of the task head.
            task: says which labels count; `None` where these have stayed with the client.
            rows: their activations, if they have been read already.
            positions: their places among those of the client, if they are all of one.
        """
        mask = mask_of([sample.num_tokens for sample in samples])
        hidden = spread(self.rows(samples) if rows is None else rows, mask)
        numbers = torch.cat(self.labels(samples))
        if task is None:
            return Forwarded(hidden, mask, None, int(numbers.sum()), positions)
        labels = in_batch(task, task.from_numbers(numbers, num_outputs), mask)
        return Forwarded(hidden, mask, labels, task.num_supervised(labels), positions)

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return int(self._store["end"])

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file, and remove it if that is wanted."""
        self._records.close()
        if remove and self._path is not None:
            self._path.unlink(missing_ok=True)

    def _order(self, client: str) -> list[str]:
        """Return the digests of a client's samples that are here, in its order."""
        held = self._held.get(client, {})
        return [d for d in self._clients.get(client, {}).get("order", ()) if d in held]

    def _number(self, layout: Layout) -> int:
        if layout not in self._layouts:
            self._layouts.append(layout)
            self._store["layouts"].append(layout.to_json())
        return self._layouts.index(layout)

    def _append(self, content: Sequence[Tensor]) -> None:
        end = self._store["end"] + sum(part.nbytes for part in content)
        if end > self._max_bytes:
            raise UserError(
                f"framework.cache_bytes={self._max_bytes}",
                f"the activations that are kept would take at least {end} bytes",
                "Raise it, write a coarser codec for activations, or framework.cache=false",
            )
        self._records.append(content)
        self._store["end"] = end

    def _rows_of(self, sample: Cached, width: int) -> Tensor:
        found = self._records.read(sample.start, sample.num_tokens * width)
        return found.view(sample.num_tokens, width)


def _open(path: Path | None, end: int) -> BinaryIO:
    """Return the file, cut to `end` bytes."""
    if path is None:
        return tempfile.TemporaryFile()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if path.stat().st_size < end:
        raise UserError(
            str(path),
            f"it has {path.stat().st_size} bytes, but had {end} when the checkpoint was written",
            "Put the file back, or start the run anew",
        )
    os.truncate(path, end)
    return path.open("r+b")


def _index(found: dict[str, Any]) -> dict[str, Cached]:
    places = [Cached(*place) for place in found["places"].tolist()]
    return dict(zip(found["digests"], places, strict=True))
