"""The plan of one run: rounds on paper, summed up by client, tier and federation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from trillium.config.experiment import ExperimentConfig
from trillium.errors import UserError
from trillium.federation.fleet import FleetConfig
from trillium.frameworks import once_bytes
from trillium.frameworks.baselines import Centralised, LocalOnly, ZeroShot
from trillium.frameworks.fedkseed import FedKSeed
from trillium.frameworks.fedllm.protocol import FedLLM
from trillium.frameworks.kd.protocol import KD
from trillium.frameworks.split.protocol import Split
from trillium.plan.baselines import BaselineRounds
from trillium.plan.data import Texts
from trillium.plan.depth import Rounds, course_of
from trillium.plan.federation import Federation
from trillium.plan.fedkseed import FedKSeedRounds
from trillium.plan.fedllm import FedLLMRounds
from trillium.plan.kd import KDRounds
from trillium.plan.models import Models
from trillium.plan.split import SplitRounds
from trillium.plan.sums import Sums
from trillium.plan.waves import Ask, Memory, Wave

ASKS = 200_000  # planned one by one; from then on, a round is taken to be as the last one


def rounds_of(federation: Federation) -> Rounds:
    """Return what the framework of a federation does.

    Raises:
        UserError: there is no plan for these settings.
    """
    framework, config = federation.config.framework, federation.config
    if config.model.quantize != "none":
        raise UserError(
            f"a plan for model.quantize={config.model.quantize}",
            "what a quantised base takes is not planned yet",
            "Write model.quantize=none to see what it would take without",
        )
    if isinstance(framework, FedLLM):
        return FedLLMRounds(framework, federation)
    if isinstance(framework, FedKSeed):
        return FedKSeedRounds(framework, federation)
    if isinstance(framework, KD):
        return KDRounds(framework, federation)
    if isinstance(framework, Split):
        return SplitRounds(framework, federation)
    if isinstance(framework, ZeroShot | LocalOnly | Centralised):
        return BaselineRounds(framework, federation)
    raise UserError(
        f"a plan for framework={framework.name}",
        "there is none yet",
        "Write framework=fedllm, kd, split or fedkseed",
    )


@dataclass
class Prediction:
    """What a run will send, receive and compute.

    Attributes:
        config: of the run.
        clients: by name, over the whole run.
        later: by client, one round after the first in which it takes part; the first where there
            is no other.
        once_bytes: what a client must hold beside what messages bring, by what it is.
        server_flops: of the whole run.
        server_peak_bytes: the most memory that the server's work takes.
        memory: of each client at its peak, by part.
        waves: of that round, for its course in time.
        planned_rounds: rounds that were planned one by one.
        upper_bound: whether a run may take less, because some examples are left out by value.
        num_parameters, num_trained: of the model.
    """

    config: ExperimentConfig
    clients: dict[str, Sums]
    later: dict[str, Sums]
    once_bytes: dict[str, int]
    server_flops: float
    server_peak_bytes: int
    memory: dict[str, Memory]
    waves: list[Wave]
    planned_rounds: int
    upper_bound: bool
    num_parameters: int
    num_trained: int
    texts: Texts

    @property
    def total(self) -> Sums:
        """All clients together, over the whole run."""
        total = Sums()
        for sums in self.clients.values():
            total.merge(sums)
        return total


def predict(config: ExperimentConfig, texts: Texts, models: Models | None = None) -> Prediction:
    """Return what a run will send, receive and compute.

    Nothing is trained and no weight exists: the code of the run is followed on tensors without
    values, with the cohorts, batches and codecs that the run will have.

    Args:
        config: of the run.
        texts: its data, or what is assumed of it.
        models: makes the model; give the same one to plans of the same model.

    Raises:
        UserError: the settings do not fit together, or there is no plan for them.
    """
    federation = Federation(config, texts, models=models or Models())
    course = course_of(federation, rounds_of)
    clients: dict[str, Sums] = {name: Sums() for name in federation.clients}
    first = list(course.start())
    _add(clients, first)
    later: dict[str, Sums] = {}
    since: dict[str, int] = {}
    waves: list[Wave] = []
    server_flops = texts.written + sum(wave.server.flops for wave in first)
    server_peak = max((wave.server.peak_bytes for wave in first), default=0)
    asks, number = 0, 0
    total = config.rounds if config.framework.trains else 0
    while number < total:
        number += 1
        last = list(course.round(number))
        own = _add({}, last)
        for name, sums in own.items():
            clients[name].merge(sums)
            if since.get(name, 1) == 1:  # in the first round nothing comes down
                later[name], since[name] = sums, number
        if number <= 2:
            waves = last
        flops = sum(wave.server.flops for wave in last)
        server_flops += flops
        server_peak = max([server_peak, *(wave.server.peak_bytes for wave in last)])
        asks += sum(len(wave.asks) for wave in last)
        if number >= 2 and asks + asks / number > ASKS and _is_steady(config):
            left = total - number
            server_flops += left * flops
            _repeat(clients, own, left)
            break
    if max(since.values(), default=1) > 1:
        later = {name: sums for name, sums in later.items() if since[name] > 1}
    federation.begin(min(2, max(total, 1)))
    module = federation.model.module
    return Prediction(
        config=config,
        clients=clients,
        later=later,
        once_bytes=once_bytes(
            config.framework, federation.server, list(federation.clients.values())
        ),
        server_flops=server_flops,
        server_peak_bytes=server_peak,
        memory=_memories(federation, course.rounds, {name: clients[name] for name in since}),
        waves=waves,
        planned_rounds=number,
        upper_bound=course.rounds.upper_bound,
        num_parameters=sum(parameter.numel() for parameter in module.parameters()),
        num_trained=sum(tensor.numel() for tensor in federation.model.initial.values()),
        texts=texts,
    )


def bytes_of_a_round(
    config: ExperimentConfig, texts: Texts, models: Models, num_blocks: int | None = None
) -> float:
    """Return the bytes up and down of one client in a round after the first; nothing is computed.

    Args:
        config: of the run.
        texts: its data, or what is assumed of it.
        models: makes the model.
        num_blocks: how many blocks it is to have; its own number where left out.

    Raises:
        UserError: as `predict`.
    """
    if (
        texts.assumed and not config.tiers and config.fleet == FleetConfig()
    ):  # then all clients are alike
        texts = replace(texts, clients=dict(islice(texts.clients.items(), 1)))
    federation = Federation(config, texts, num_blocks, counts=False, models=models)
    rounds, sums = rounds_of(federation), Sums()
    list(rounds.start())  # of a round after the first, so without the head's phase
    for number in (1, 2):
        own = _add({}, rounds.round(number, federation.begin(number)))
    for one in own.values():
        sums.merge(one, 1 / len(own))
    return sums.up.bytes + sums.down.bytes


def _is_steady(config: ExperimentConfig) -> bool:
    """Whether one round after the first costs what the others do."""
    framework = config.framework
    if isinstance(framework, FedLLM):
        return framework.mask.name == "all"
    return not isinstance(framework, KD) or framework.cache_rounds == 1


def _add(clients: dict[str, Sums], waves: Iterable[Wave]) -> dict[str, Sums]:
    """Add what waves cost to the sums of their clients; asks that are alike are added up once."""
    found = list(waves)
    times = Counter(map(id, found))
    asked: dict[str, list[tuple[Ask, int]]] = defaultdict(list)
    for wave in {id(wave): wave for wave in found}.values():
        for ask in wave.asks:
            asked[ask.client].append((ask, times[id(wave)]))
    known: dict[Hashable, Sums] = {}
    for client, asks in asked.items():
        key = tuple((id(ask.down), id(ask.up), ask.cost, ask.purpose, n) for ask, n in asks)
        if key not in known:
            known[key] = Sums()
            for ask, count in asks:
                known[key].add(ask, count)
        clients.setdefault(client, Sums()).merge(known[key])
    return clients


def _repeat(clients: dict[str, Sums], last: Mapping[str, Sums], times: int) -> None:
    """Add rounds like the last one; whoever is drawn for them costs what those of the last one did."""
    mean = Sums()
    for sums in last.values():
        mean.merge(sums, 1 / len(last))
    share = len(last) / len(clients)
    for name, found in clients.items():
        found.merge(last[name] if share == 1 else mean, times * share)


def _memories(
    federation: Federation, rounds: Rounds, clients: Mapping[str, Sums]
) -> dict[str, Memory]:
    """Return the memory of clients by part; equal clients are looked at once."""
    found: dict[tuple[int, int, int], Memory] = {}
    result = {}
    for name, sums in clients.items():
        client = federation.clients[name]
        key = id(client.tier), id(client.examples), sums.peak_bytes
        if key not in found:
            found[key] = rounds.memory(client, sums.peak_bytes)
        result[name] = found[key]
    return result


def by_tier(config: ExperimentConfig, names: Iterable[str]) -> Mapping[str, list[str]]:
    """Return client names by the label of their tier; `all` for those of none."""
    from trillium.federation.tiers import tier_of

    labels = {id(tier): label for label, tier in config.tiers.items()}
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[labels.get(id(tier_of(config.tiers, name)), "all")].append(name)
    return dict(found)
