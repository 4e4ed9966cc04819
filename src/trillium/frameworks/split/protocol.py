"""Split-FedLLM: the model is cut; clients run the first blocks (and the last), the server the rest.

Split learning (Vepakomma et al., 2018, arXiv 1812.00564), its parallel forms SplitFed v1 and v2
(Thapa et al., 2020, arXiv 2004.12088), with LoRA on either side as in SplitLoRA (Lin et al., 2024,
arXiv 2407.00952). The third of the three frameworks of Yan et al. (2025, arXiv 2501.04436).

Each batch, up: activations at the cut, with labels in two parts; down: their gradient. In the U
shape the server's output goes down to the client's last blocks, and its gradient comes up. Once a
round the client parts go up and, averaged, down. Where nothing in front of the cut trains or is
random, activations go up once; in two parts that is all. docs/split.md says which published method is
which setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

from trillium.federation.fleet import Fleet
from trillium.federation.server import Server
from trillium.federation.setting import Evaluation, Setting
from trillium.federation.side import Metrics, Side
from trillium.frameworks import everyone, weigh
from trillium.frameworks.effects import DIRECTIONS, Crossing, Crossings, Direction
from trillium.frameworks.measuring import Tally
from trillium.frameworks.split import agreement as split_agreement
from trillium.frameworks.split import cached as split_cached
from trillium.frameworks.split import client as split_client
from trillium.frameworks.split import generate as split_generate
from trillium.frameworks.split import local as split_local
from trillium.frameworks.split import measure as split_measure
from trillium.frameworks.split.activation_cache import ActivationCache
from trillium.frameworks.split.agreement import check_agreement
from trillium.frameworks.split.checks import (
    check_delta,
    check_fixed,
    check_measured,
    check_parts,
    check_split_settings,
    check_staleness,
    no_steps,
)
from trillium.frameworks.split.exchange import Exchange
from trillium.frameworks.split.kept import KeptBatches
from trillium.frameworks.split.measure import measure_across
from trillium.frameworks.split.probe_leakage import leakage
from trillium.frameworks.split.settings import SplitSettings
from trillium.wire.kinds import Kind


class Split(SplitSettings, name="split"):
    """Training across a cut."""

    client_half: ClassVar[Sequence[ModuleType]] = (
        split_agreement,
        split_client,
        split_local,
        split_cached,
        split_generate,
        split_measure,
    )

    def crossings(self, config: Setting) -> Crossings:
        """Return what crosses with each batch, and with the parts of the clients."""
        trains = self.train != "server"
        found: dict[tuple[Direction, Kind], Crossing] = {
            ("up", "activations"): Crossing("activations" if self.delta is None else "changes")
        }
        if trains:
            found["down", "gradients"] = Crossing("gradients")
        if self.shape == "u":
            found["down", "activations"] = Crossing("activations")
            found["up", "gradients"] = Crossing("gradients")
        else:
            found["up", "labels"] = Crossing("values")
        if trains or self.shape == "u" or self.local_rounds:
            found |= {(way, "parameters"): Crossing("values") for way in DIRECTIONS}
        if self.local_rounds:
            found["down", "snapshot"] = Crossing("values")
        return found

    def check(self, config: Setting) -> None:
        """Refuse settings that contradict each other."""
        super().check(config)
        check_split_settings(self, config)
        check_measured(config)

    def start(self, server: Server, fleet: Fleet) -> None:
        """Cut the model and hold the cut against the whole."""
        parts = self.parts(server.model, server.test)
        check_parts(self, parts, server.training)
        cuts_differ = any(tier.cut is not None for tier in server.tiers.values())
        if self.cache or self.local_rounds or cuts_differ:
            check_fixed(parts)
        if self.delta is not None:
            check_delta(parts)
        if self.staleness:
            check_staleness(self, self.caches(parts))
        if self.caches(parts) and self.shape == "two_part" and self.mode == "coalesced":
            for label, tier in server.tiers.items():
                if tier.local_steps is not None:
                    raise no_steps(label)

    def round(self, server: Server, fleet: Fleet) -> Metrics:
        """Train with the cohort, or on what the cohort has sent once."""
        parts = self.parts(server.model, server.test)
        check_agreement(self, server, fleet)
        if server.round <= self.local_rounds:
            return {"train_loss": split_local.train_first_blocks(server, fleet, parts)}
        kept, figures = None, dict[str, int]()
        if self.caches(parts):
            cache = self._cache(server)
            split_cached.collect(self, server, fleet, parts, cache)
            kept, figures = KeptBatches(self, server, cache), {"cache_bytes": cache.nbytes}
        if kept is not None and self.shape == "two_part" and self.mode == "coalesced":
            loss, count = split_cached.train(self, server, parts, kept.cache)
        else:
            exchange = Exchange(self, server, fleet, parts, server.generator("order"), kept)
            loss, count = exchange.run()
        mean = loss / max(count, 1)
        server.store["losses"] = [*server.store.get("losses", ())[-1:], mean]
        return {"train_loss": mean, **figures}

    def tallies(self, server: Server, fleet: Fleet, batch_tokens: int) -> dict[str, Tally]:
        """Measure across the cut."""
        return measure_across(self, server, fleet, everyone(fleet), batch_tokens)

    def evaluate(self, server: Server, fleet: Fleet, evaluation: Evaluation, last: bool) -> Metrics:
        """Return the metrics of the assembled model; in the end also what activations give away."""
        found = super().evaluate(server, fleet, evaluation, last)
        if not last:
            return found
        parts, training = self.parts(server.model, server.test), server.training
        passes = server.num_rounds * (training.local_steps or training.local_epochs)
        num_releases = 1 if self.caches(parts) else passes
        found |= self.defence.epsilon(training.limit, num_releases)
        if self.leakage:
            found["leakage"] = leakage(self, server, fleet, evaluation.batch_tokens)
        return found

    def finish_run(self, server: Server) -> None:
        """Remove the activations."""
        if "cache" in server.scratch:
            server.scratch.pop("cache").close(remove=True)

    def _cache(self, server: Server) -> ActivationCache:
        if "cache" not in server.scratch:
            store = server.store.setdefault("cache", {})
            server.scratch["cache"] = ActivationCache(store, server.folder, self.cache_bytes)
        cache: ActivationCache = server.scratch["cache"]
        return cache

    def once_bytes(self, side: Side) -> dict[str, int]:
        """Return the weight of the frozen tensors of the client's parts."""
        parts = self.parts(side.model, side.test)
        found = weigh(parts.split.head, parts.head.names)
        if parts.split.tail is not None:
            found += weigh(parts.split.tail, parts.tail.names)
        return {"base_model": found}
