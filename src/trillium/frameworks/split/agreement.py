"""Whether a client's part is that of the server's model: both run it on a few public tokens.

Once, before a client's first round: down, the tokens; up, the activations at the cut, and in the U
shape what the client's last part makes of these. Who answers otherwise has other weights, and is
refused; it is asked once more, for the activations in front of each of its blocks, to say what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trillium.federation.client import Client, client_verb
from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.side import Side
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.blocks import evaluating, find_blocks, text_config
from trillium.models.parts import Parts
from trillium.training.meters import resident_tensors
from trillium.wire.kinds import MessageError, has_values
from trillium.wire.message import Message, scalar

NUM_TOKENS = 8
NUM_LOGITS = 64  # of each token; their log-sum-exp is behind them
_TOKENS, _DEPTHS, _HEAD, _TAIL = "control/tokens", "control/depths", "control/head", "control/tail"


def check_agreement(split: SplitSettings, server: Server, fleet: Fleet) -> None:
    """Ask those of the cohort that are new; those that hold other weights drop out of the round."""
    agreed = {*server.store.get("agreed", ())} - fleet.newcomers
    new = [client for client in fleet.cohort if client not in agreed]
    tokens = torch.randint(
        _vocabulary(server), (NUM_TOKENS,), generator=server.generator("probe")
    ).int()

    def ask(clients: Sequence[str], depths: int) -> set[str]:
        request = Message("probe_part", {_TOKENS: tokens, _DEPTHS: scalar(depths)})
        own = {client: server.tiers[client].cut or split.cut for client in clients}
        known = {
            cut: _answer(server, split.parts(server.model, server.test, cut), tokens, depths)
            for cut in sorted({*own.values()})
        }
        readers = {c: partial(_compared, known[cut], bool(depths)) for c, cut in own.items()}
        answers = fleet.ask_all(dict.fromkeys(clients, request), readers, "once")
        return {client for client, agrees in answers.items() if agrees}

    if new:
        same = ask(new, 0)
        differ = [client for client in new if client in fleet.cohort and client not in same]
        if differ:
            ask(differ, 1)
        server.store["agreed"] = sorted(agreed | same)


def _compared(known: dict[str, Tensor], is_last: bool, reply: Message) -> bool:
    """Return whether an answer is the server's own; the last time one that is not is an error."""
    for name, expected in known.items():
        found = reply.floats(name, tuple(expected.shape))
        if not has_values(found):
            continue
        found, allowed = found.to(expected.device), _allowed(expected.dtype)
        size = expected.abs().amax(tuple(range(1, expected.dim()))).clamp_min(1e-30)
        shares = (found - expected).abs().amax(tuple(range(1, expected.dim()))) / size
        if bool((shares <= allowed).all()):
            continue
        if not is_last:
            return False
        depth = int((shares > allowed).int().argmax())
        where = f"block {depth - 1}" if depth else "the embeddings"
        where = where if name == _HEAD else "the last part"
        raise MessageError(
            f"its part is not that of the server's model: what {where} "
            f"answers differs by {float(shares[depth]):.1e} of its size, allowed is {allowed:.1e}"
        )
    return not is_last


def _allowed(dtype: torch.dtype) -> float:
    return min(64 * torch.finfo(dtype).eps, 0.02)


def _vocabulary(side: Side) -> int:
    return int(text_config(side.model.module).vocab_size)


def _answer(side: Side, parts: Parts, tokens: Tensor, depths: float) -> dict[str, Tensor]:
    """Return what a side's part makes of the tokens, with its start values.

    That is `(depths, tokens, width)`: the activations at the cut, or all from the embeddings on; and
    of the last part some logits of each token.
    """
    initial = side.initial
    state = side.model.state({n: initial[n] for n in (*parts.head.names, *parts.tail.names)})
    parts.head.mount(state)
    parts.tail.mount(state)
    key = ("probe", parts.split.cut, depths)
    ids = tokens.long()[None].to(side.model.device)
    run: Callable[[], dict[str, Tensor]] = partial(_run, parts, ids, bool(depths))
    with torch.no_grad(), evaluating(*parts.at_client):
        return side.meter.run(key, run, lambda: resident_tensors(parts.at_client))


def _run(parts: Parts, ids: Tensor, depths: bool) -> dict[str, Tensor]:
    head, tail = parts.split.head, parts.split.tail
    mask = torch.ones_like(ids)
    before: list[Tensor] = []

    def note(block: object, args: tuple[Tensor, ...]) -> None:
        before.append(args[0])

    own = find_blocks(head)[1][: parts.split.cut] if depths else ()
    hooks = [block.register_forward_pre_hook(note) for block in own]
    try:
        hidden = head(None, input_ids=ids, attention_mask=mask)
    finally:
        for hook in hooks:
            hook.remove()
    found = {_HEAD: torch.cat([*before, hidden])}
    if tail is not None:
        logits = tail(hidden, attention_mask=mask)
        total = logits.float().logsumexp(-1, keepdim=True).to(logits.dtype)
        found[_TAIL] = torch.cat([logits[..., :NUM_LOGITS], total], -1)
    return found


@client_verb
def probe_part(split: SplitSettings, client: Client, message: Message) -> Message:
    """Answer with what the client's part makes of some public tokens."""
    tokens = message.tensor(_TOKENS, torch.int32, (NUM_TOKENS,))
    depths = message.not_negative(_DEPTHS)
    if not bool(((tokens >= 0) & (tokens < _vocabulary(client))).all()):
        raise MessageError(f"{message.verb}: tokens that the model does not have")
    found = _answer(client, split.parts_of(client), tokens, depths)
    return Message("probe_part", {name: tensor.cpu() for name, tensor in found.items()})
