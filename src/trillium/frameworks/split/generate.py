"""Text from a model that stays cut: the prompts lie at the clients, and only new tokens cross.

Each side keeps keys and values of its own blocks, as in FedSEA-LLaMA (2025, arXiv 2505.15683).

First, to each client: the values that were trained in its part; up: the activations of its prompts,
without padding. Then, for each new token: in two parts its number goes down, which the server has
chosen; in the U shape the output goes down and the client chooses, so that the server sees neither
tokens nor logits. Up come the activations of these tokens. Texts that have ended are no longer sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.frameworks.split.ragged import lengths_of, read_lengths, spread, strip
from trillium.frameworks.split.session import PartSession, part_cache_name
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.parts import Parts
from trillium.models.slots import State
from trillium.tasks.ends import end_ids
from trillium.tasks.writing import Writing, pad_left, prompt_mask
from trillium.wire.kinds import MessageError
from trillium.wire.message import Message, named

MAX_TEXTS: Final = 4096  # of one client at a time
MAX_TOKENS: Final = 1_000_000  # of a prompt, where the model has no bound of its own
_HIDDEN: Final = "activations/hidden"
_OUTPUT: Final = "activations/output"
_TOKENS: Final = "labels/tokens"
_GOING: Final = "control/going"  # of each text, whether it goes on


# The server


def write_texts(
    split: SplitSettings, server: Server, fleet: Fleet, clients: Sequence[str], writing: Writing
) -> dict[str, list[list[int]]]:
    """Write on from the prompts of clients, all as one batch.

    Args:
        clients: those with prompts (`give_prompts`).

    Returns:
        By client, the tokens behind each prompt, with the one that ended it. In the U shape nothing:
        the server does not learn them.

    Raises:
        RoundFailed: too few clients stayed.
        UserError: the parts of the model cannot keep what they have read.
    """
    parts = split.parts(server.model, server.test)
    part_cache_name(parts.split.body)  # which refuses
    names = split.text_names(parts, server.training)
    part = {name: server.state[name].detach() for name in names}
    rules = [writing.max_new_tokens, writing.temperature, writing.top_p]
    opening = Message(
        "begin_texts",
        {**named("parameters", part), "control/writing": torch.tensor(rules, dtype=torch.float64)},
    )
    longest = (server.model.num_positions or MAX_TOKENS) - writing.max_new_tokens

    def read(reply: Message) -> tuple[list[int], Tensor]:
        lengths = read_lengths(reply, MAX_TEXTS, longest)
        return lengths.tolist(), reply.floats(_HIDDEN, (int(lengths.sum()), parts.width))

    groups: dict[int, dict[str, tuple[list[int], Tensor]]] = defaultdict(dict)
    opened = fleet.ask_all(dict.fromkeys(clients, opening), read, "generate")
    for client, found in opened.items():
        groups[server.tiers[client].cut or split.cut][client] = found
    draw = server.generator("tokens")
    running = [
        _Batch(split.parts(server.model, server.test, cut), server, group, writing, draw)
        for cut, group in sorted(groups.items())
    ]
    written = {c: text for batch in running for c, text in batch.written.items()}
    for number in range(1, writing.max_new_tokens + 1):
        asks: dict[str, Message] = {}
        readers: dict[str, Callable[[Message], Answer]] = {}
        for batch in running:
            for client, (ask, reader) in batch.asks(number == writing.max_new_tokens).items():
                asks[client], readers[client] = ask, reader
        replies = fleet.ask_all(asks, readers, "generate")
        for batch in running:
            batch.take(replies)
        running = [batch for batch in running if batch.rows]
        if not running:
            break
    return written if split.shape == "two_part" else {}


Answer = tuple[list[bool], Tensor]
"""Which texts of a client go on, and the activations of their new tokens `(going, width)`."""


class _Batch:
    """The texts of all clients with the same cut, which the server runs as one batch.

    Attributes:
        rows: of each text, whose it is and its number there.
        written: by client, the tokens behind each prompt as far as the server knows them.
    """

    def __init__(
        self,
        parts: Parts,
        server: Server,
        opened: Mapping[str, tuple[list[int], Tensor]],
        writing: Writing,
        draw: torch.Generator,
    ) -> None:
        self._parts, self._server, self._writing, self._draw = parts, server, writing, draw
        self._at_client = parts.split.tail is not None  # where texts end
        self._ends = end_ids(server.model.tokenizer, server.model.module)
        self.rows = [
            (client, n) for client, (sizes, _) in opened.items() for n in range(len(sizes))
        ]
        self.written: dict[str, list[list[int]]] = {
            client: [[] for _ in sizes] for client, (sizes, _) in opened.items()
        }
        mask = prompt_mask([size for sizes, _ in opened.values() for size in sizes])
        self._mask = mask.to(server.model.device)  # of what is new
        self._hidden = spread(self._here(torch.cat([f for _, f in opened.values()])), self._mask)
        self._session = PartSession(parts.split.body, self._mask, server.meter)

    def asks(self, last: bool) -> dict[str, tuple[Message, Callable[[Message], Answer]]]:
        """Run the server's blocks; return what each client is asked, and what reads its answer."""
        self._parts.body.mount(self._server.state)
        output = self._session.step(self._hidden)
        places = self._places()
        if self._at_client:
            return {c: (self._output(output, o), self._reader(o, last)) for c, o in places.items()}
        tokens = self._writing.choose(output[:, -1], self._draw)
        going = [not last and token not in self._ends for token in tokens.tolist()]
        for (client, number), token in zip(self.rows, tokens.tolist(), strict=True):
            self.written[client][number].append(token)
        asks = {}
        for client, own in places.items():
            ask = Message("next_tokens", {_TOKENS: tokens[own].int()})
            asks[client] = (ask, self._reader(own, last, [going[place] for place in own]))
        return asks

    def take(self, replies: Mapping[str, Answer]) -> None:
        """Go on with the texts that have not ended, of the clients that have answered."""
        kept, hidden = list[int](), list[Tensor]()
        for client, own in self._places().items():
            if client in replies:
                going, found = replies[client]
                kept += [place for place, goes in zip(own, going, strict=True) if goes]
                hidden.append(found)
        self.rows = [self.rows[place] for place in kept]
        if self.rows:
            self._session.keep(torch.tensor(kept))
            self._hidden = self._here(torch.cat(hidden))[:, None]
            self._mask = torch.ones_like(self._mask[: len(kept), :1])

    def _places(self) -> dict[str, list[int]]:
        """Return the rows of each client."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, (client, _) in enumerate(self.rows):
            places[client].append(place)
        return places

    def _output(self, output: Tensor, own: list[int]) -> Message:
        """Return what a client needs of the output: all tokens for blocks, else the last ones."""
        tail = self._parts.split.tail
        assert tail is not None
        needed = strip(output[own], self._mask[own]) if len(tail.blocks) else output[own][:, -1]
        return Message("next_tokens", {_OUTPUT: needed})

    def _reader(
        self, own: list[int], last: bool, known: list[bool] | None = None
    ) -> Callable[[Message], Answer]:
        """Return what checks the answer of a client with these rows."""

        def read(reply: Message) -> Answer:
            going = _read_going(reply, len(own)) if known is None else known
            if last and any(going):
                raise MessageError(f"{reply.verb}: a text goes on past its longest")
            if not any(going):
                return going, torch.zeros(0, self._parts.width)
            return going, reply.floats(_HIDDEN, (sum(going), self._parts.width))

        return read

    def _here(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._server.model.device, self._server.model.dtype)


def _read_going(reply: Message, num_rows: int) -> list[bool]:
    going = reply.tensor(_GOING, torch.uint8, (num_rows,))
    if num_rows and int(going.max()) > 1:
        raise MessageError(f"{reply.verb}: {_GOING} holds {int(going.max())}, not 0 or 1")
    return going.bool().tolist()


# The client


def give_prompts(client: Client, prompts: Sequence[Sequence[int]]) -> None:
    """Lay down what the client's owner wants written on; it stays there."""
    assert all(prompts), "an empty prompt has no activations"
    client.scratch["prompts"] = [list(prompt) for prompt in prompts]


def texts_of(client: Client) -> list[list[int]]:
    """Return what was written behind each of a client's prompts, with the token that ended it."""
    written: list[list[int]] = client.scratch["written"]
    return written


@dataclass
class _Texts:
    """The texts of a client while they are written.

    Attributes:
        parts: the cut model, and the state that is mounted into it.
        state: see `parts`.
        head, tail: what the client runs; no tail in two parts.
        draw: draws them in the U shape.
        ends: tokens that end a text.
        going: numbers of the texts that have not ended.
    """

    parts: Parts
    state: State
    head: PartSession
    tail: PartSession | None
    mask: Tensor
    writing: Writing
    draw: torch.Generator
    ends: list[int]
    going: list[int]
    num_new: int = 0


@client_verb
def begin_texts(split: SplitSettings, client: Client, message: Message) -> Message:
    """Take the trained values of the client's part and run its first blocks on the prompts."""
    prompts: list[list[int]] = client.scratch.get("prompts", [])
    if not prompts:
        raise MessageError(f"{message.verb}: this client has no prompts")
    parts = split.parts_of(client)
    names = split.text_names(parts, client.training)
    received = message.expect("parameters", {name: client.initial[name] for name in names})
    writing = _read_writing(message)
    longest = max(map(len, prompts)) + writing.max_new_tokens
    bound = client.model.num_positions
    if bound is not None and longest > bound:
        raise MessageError(f"{message.verb}: {longest} tokens, the model has {bound} positions")
    state = client.model.state({**client.initial, **received})
    parts.head.mount(state)
    ids, mask = pad_left(prompts, client.model.tokenizer.pad_token_id)
    ids, mask = ids.to(client.model.device), mask.to(client.model.device)
    head, tail = PartSession(parts.split.head, mask, client.meter), None
    if parts.split.tail is not None:
        tail = PartSession(parts.split.tail, mask, client.meter)
    draw = client.generator("tokens")
    client.scratch["written"] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    ends = end_ids(client.model.tokenizer, client.model.module)
    client.scratch["texts"] = _Texts(parts, state, head, tail, mask, writing, draw, ends, going)
    rows = split.defence.apply(strip(head.step(ids), mask), client.secret)
    return Message("begin_texts", {_HIDDEN: rows, **lengths_of(mask)})


@client_verb
def next_tokens(split: SplitSettings, client: Client, message: Message) -> Message:
    """Add a token to each text, and run the first blocks on those of the texts that go on."""
    texts: _Texts | None = client.scratch.get("texts")
    if texts is None:
        raise MessageError(f"{message.verb}: no text is being written")
    tokens = _read_tokens(texts, client, message)
    texts.num_new += 1
    for number, token in zip(texts.going, tokens, strict=True):
        client.scratch["written"][number].append(token)
    last = texts.num_new == texts.writing.max_new_tokens
    going = [not last and token not in texts.ends for token in tokens]
    reply: dict[str, Tensor] = {}
    if texts.tail is not None:
        reply[_GOING] = torch.tensor(going, dtype=torch.uint8)
    if not any(going):
        del client.scratch["texts"]
        return Message("next_tokens", reply)
    kept = [place for place, goes in enumerate(going) if goes]
    texts.going = [texts.going[place] for place in kept]
    for session in (texts.head, texts.tail):
        if session is not None:
            session.keep(torch.tensor(kept))
    texts.mask = torch.ones_like(texts.mask[: len(kept), :1])
    texts.parts.head.mount(texts.state)
    new = torch.tensor([tokens[place] for place in kept], device=client.model.device)
    rows = texts.head.step(new[:, None])[:, 0]
    return Message("next_tokens", {**reply, _HIDDEN: split.defence.apply(rows, client.secret)})


def _read_tokens(texts: _Texts, client: Client, message: Message) -> list[int]:
    """Return the next token of each text: the server's, or the client's own from the output."""
    tail, rows = texts.parts.split.tail, len(texts.going)
    if tail is None or texts.tail is None:
        tokens = message.tensor(_TOKENS, torch.int32, (rows,)).tolist()
        if not all(0 <= token < client.model.num_classes for token in tokens):
            raise MessageError(f"{message.verb}: tokens that the model does not have")
        return tokens
    last_only = not len(tail.blocks)
    mask = texts.mask[:, -1:] if last_only else texts.mask
    flat = message.floats(_OUTPUT, (int(mask.sum()), texts.parts.width))
    texts.parts.tail.mount(texts.state)
    given = spread(flat.to(client.model.device, client.model.dtype), mask)
    return texts.writing.choose(texts.tail.step(given)[:, -1], texts.draw).tolist()


def _read_writing(message: Message) -> Writing:
    """Return how text is to be written."""
    found = message.tensor("control/writing", torch.float64, (3,)).tolist()
    most, temperature, top_p = found
    if not (1 <= most <= MAX_TOKENS and most.is_integer() and temperature >= 0 and 0 < top_p <= 1):
        raise MessageError(f"{message.verb}: {found} is no way to write")
    return Writing(int(most), temperature, top_p)
