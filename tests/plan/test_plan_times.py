"""Time on paper against sums done by hand, and a ledger replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from trillium.clock.ledger import waves_of
from trillium.clock.places import Place, quantity
from trillium.clock.times import round_time
from trillium.clock.waves import Ask, Wave, Weight, Work
from trillium.errors import UserError
from trillium.experiment.arm import run_one
from trillium.experiment.folder import RunFolder
from trillium.plan.places import Planning
from trillium.plan.replay import replay
from trillium.wire.ledger import Entry


def weight(count: int) -> Weight:
    return Weight(count, {"control": count}, count, count)


def place(**kwargs: object) -> Place:
    return Place.model_validate(kwargs)


SLOW = place(device={"flops": "10"}, link={"up": "8", "down": "80", "latency": 1})
FAST = place(device={"flops": "100"}, link={"up": "80", "down": "800"})
SERVER = place(device={"flops": "1000"})


def test_a_round_lasts_as_long_as_its_slowest_client() -> None:
    asks = tuple(Ask(c, "train", weight(100), weight(20), Work(flops=200)) for c in ("a", "b"))
    time = round_time([Wave(asks, Work(flops=3000))], {"a": SLOW, "b": FAST}, SERVER)
    assert time is not None
    # a: 1 + 800/80, 200/10, 1 + 160/8; b: 800/800, 200/100, 160/80; the server: 3.
    assert time.seconds == pytest.approx(11 + 20 + 21 + 3)
    assert time.clients["a"].compute == pytest.approx(20)
    assert time.clients["a"].wire == pytest.approx(32)
    assert time.clients["a"].waiting == pytest.approx(3)
    assert time.clients["b"].waiting == pytest.approx(55 - 1 - 2 - 2)


def test_through_the_link_of_the_server_goes_one_message_after_the_other() -> None:
    asks = tuple(Ask(c, "train", weight(100), None) for c in "abcd")
    server = place(device={"flops": "1"}, link={"up": "80"})
    time = round_time([Wave(asks)], dict.fromkeys("abcd", FAST), server)
    assert time is not None
    assert time.seconds == pytest.approx(4 * 10)


def test_a_client_works_on_what_comes_next_while_the_server_computes() -> None:
    """Every message takes a second each way, a client four for a batch, the server six."""
    link = {"up": "8", "down": "8"}
    client, server = (place(device={"flops": "1"}, link=link), place(device={"flops": "1"}))

    def ask(flops: float) -> tuple[Ask]:
        return (Ask("a", "forward", weight(1), weight(1), Work(flops)),)

    forward = [Wave(ask(4), posted=True) for _ in range(3)]
    taken = [Wave((), Work(6), collects=True) for _ in range(3)]
    back = [Wave(ask(2)) for _ in range(3)]
    waves = [forward[0], forward[1], taken[0], back[0], forward[2], taken[1], back[1]]
    time = round_time([*waves, taken[2], back[2]], {"a": client}, server)
    assert time is not None
    # Batches are here at 6 and 10; the server has the first at 12, and its client answers at 16. The
    # second is done at 22; its client runs the third from 17 to 21, and answers at 26; 32; 36.
    assert time.seconds == pytest.approx(36)
    assert time.server == pytest.approx(18)
    assert time.clients["a"].compute == pytest.approx(3 * 4 + 3 * 2)
    one = [wave for n in range(3) for wave in (Wave(ask(4), Work(6)), Wave(ask(2)))]
    slow = round_time(one, {"a": client}, server)
    assert slow is not None
    assert slow.seconds == pytest.approx(3 * (6 + 6 + 4))


def test_a_client_takes_one_message_after_the_other() -> None:
    asks = (Ask("a", "forward", weight(100), weight(80), Work(1000)),)
    waves = [Wave(asks, posted=True), Wave(asks), Wave((), collects=True)]
    time = round_time(waves, {"a": FAST}, SERVER)
    assert time is not None
    assert time.seconds == pytest.approx(1 + 10 + 10 + 8)  # both are there after a second


def test_what_nobody_knows_is_not_made_up() -> None:
    asks = (Ask("a", "train", weight(100), weight(20), Work(flops=1)),)
    assert round_time([Wave(asks)], {"a": Place()}, SERVER) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("4GB", 4e9), ("10Mbit", 1e7), ("2 TFLOPS", 2e12), ("1GiB", 2**30), ("1e6", 1e6), (5, 5)],
)
def test_quantities(text: str | int, value: float) -> None:
    assert quantity(text) == value


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(UserError, match="not a quantity"):
        quantity("much")


def entry(client: str, verb: str, direction: str) -> Entry:
    return Entry(1, client, verb, direction, "train", 10, 10, {"control": 10})  # type: ignore[arg-type]


def test_waves_are_found_again_in_a_ledger() -> None:
    lines = []
    for verb in ("forward", "backward", "forward"):
        for client in ("a", "b"):
            lines += [entry(client, verb, "down"), entry(client, verb, "up")]
    waves = [wave.wave for wave in waves_of(lines)]
    assert [[(a.client, a.verb) for a in wave.asks] for wave in waves] == [
        [("a", verb), ("b", verb)] for verb in ("forward", "backward", "forward")
    ]


def test_a_run_is_replayed(hub: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "split")
    run_one(tiny.experiment_config(hub, "framework=split", "data.num_clients=2"), folder)
    told = {"link": {"up": "1Mbit", "down": "1Mbit"}, "device": {"flops": "1GFLOPS"}}
    fast = Planning.model_validate({"client": told, "server": told})
    told["link"]["up"] = "1kbit"
    slow = Planning.model_validate({"client": told, "server": {"device": {"flops": "1e9"}}})
    found, other = replay(folder.path, fast), replay(folder.path, slow)
    assert [line.number for line in found] == [1, 2]
    assert "accuracy" in found[-1].metrics
    lines = [json.loads(x) for x in (folder.path / "wire.jsonl").read_text().splitlines()]
    up = [
        sum(x["bytes"] for x in lines if x["direction"] == "up" and x["client"] == client)
        for client in ("client-0", "client-1")
    ]
    assert max(up) * 8 / 1e3 <= other[-1].seconds <= sum(up) * 8 / 1e3 + found[-1].seconds
    with pytest.raises(UserError, match="speed"):
        replay(folder.path, Planning())
