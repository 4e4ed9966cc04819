"""The plans of several settings side by side: what each tier of clients has to bear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trillium.clock.places import Place
from trillium.clock.times import RoundTime, course_time
from trillium.config.defaults import remarks
from trillium.config.experiment import ExperimentConfig, Tree, experiment, merge
from trillium.errors import UserError, suggest
from trillium.plan.data import Assumptions, Texts, assumed_texts, by_tier
from trillium.plan.evidence import Line, Way
from trillium.plan.measured import Measured, nearest
from trillium.plan.memory import Memory
from trillium.plan.models import Models, architecture
from trillium.plan.places import Planning
from trillium.plan.point import point_of_plan
from trillium.plan.predict import Prediction, predict
from trillium.plan.read import Reader
from trillium.plan.result import to_dict
from trillium.plan.shapes import shapes
from trillium.plan.sums import Sums

USUAL: dict[str, Tree] = {
    "fedllm": {"framework": "fedllm"},
    "fedllm_full": {"framework": "fedllm", "adapter": "full"},
    "kd": {"framework": "kd"},
    "split": {"framework": "split"},
}
"""What is planned where neither a framework nor arms are named."""


@dataclass(frozen=True)
class TierPlan:
    """What one client of a tier has to bear; of several the mean, of memory and seconds the most.

    Attributes:
        label: of the tier, `all` where the run has none.
        num_clients: of the tier.
        round: one round after the first.
        run: the whole run.
        memory: at the peak, by part.
        place: where these clients run.
        time: one round after the first; `None` where a speed is unknown.
        seconds: how the slowest of these clients spends it.
        joules: that its device takes for it, if watts are known.
        misfit: why it cannot run there; empty where it can.
    """

    label: str
    num_clients: int
    round: Sums
    run: Sums
    memory: Memory
    place: Place
    seconds: float | None
    joules: float | None
    misfit: str


@dataclass(frozen=True)
class Arm:
    """The plan of one setting.

    Attributes:
        label: of the setting.
        config: the run.
        prediction: what it will cost; `None` where there is no plan.
        tiers: by tier of clients.
        time: the course of a round after the first; `None` where a speed is unknown.
        measured: what was measured nearest to it; `None` where nothing of its kind was.
        refused: why it cannot be planned or run at all.
        unread: why its data are assumed, where they are.
    """

    label: str
    config: ExperimentConfig | None
    prediction: Prediction | None = None
    tiers: tuple[TierPlan, ...] = ()
    time: RoundTime | None = None
    measured: Measured | None = None
    refused: str = ""
    unread: str = ""

    @property
    def misfit(self) -> str:
        """Why it cannot run on these devices; empty where it can."""
        found = [f"{t.label}: {t.misfit}" if len(self.tiers) > 1 else t.misfit for t in self.tiers]
        return self.refused or "; ".join(text for text in found if not text.endswith(": ") and text)

    @property
    def known(self) -> Way | None:
        """How far it gets from local only to centralised, if that was measured near enough."""
        return None if self.measured is None else self.measured.known

    @property
    def remarks(self) -> list[str]:
        """What is far from what its task wants."""
        if self.config is None or self.prediction is None:
            return []
        return [*remarks(self.config, self.prediction.model.num_classes)]

    @property
    def bytes_up(self) -> float:
        """Of a client over the whole run, the most of any tier."""
        return max((tier.run.up.bytes for tier in self.tiers), default=0.0)

    @property
    def bytes_down(self) -> float:
        """The same, down."""
        return max((tier.run.down.bytes for tier in self.tiers), default=0.0)

    @property
    def flops(self) -> float:
        """Of a client over the whole run, the most of any tier."""
        return max((tier.run.flops for tier in self.tiers), default=0.0)

    @property
    def peak_bytes(self) -> int:
        """The most memory that a client needs."""
        return max((tier.run.peak_bytes for tier in self.tiers), default=0)


def arms_of(tree: Tree) -> dict[str, Tree]:
    """Return the settings to plan: the arms of a recipe, the framework it names, or the usual ones.

    Args:
        tree: recipe and words, without the key `plan`; the label of an arm holds settings of that
            arm alone.
    """
    base = {key: value for key, value in tree.items() if key != "arms"}
    arms = tree.get("arms")
    if not isinstance(arms, Mapping):
        if "framework" in base:
            named = base["framework"]
            return {str(named if isinstance(named, str) else named.get("name", "fedllm")): base}
        arms = USUAL
    own = {label: base.pop(label) for label in arms if label in base}
    return {label: merge(merge(base, arm or {}), own.get(label, {})) for label, arm in arms.items()}


def check_models(trees: Mapping[str, Tree]) -> None:
    """Refuse models that nobody knows, before anything is planned.

    Raises:
        UserError: one is neither a public shape, nor a folder, nor on the hub (which may be offline).
    """
    models = [tree.get("model", {}) for tree in trees.values()]
    names = {str(model["id"]) for model in models if "id" in model}
    for name in sorted(names):
        try:
            architecture(experiment({"model": {"id": name}}), 0)
        except UserError as error:
            near = suggest(name.rpartition("/")[-1].lower(), shapes())
            if not near.startswith("Did"):
                near = "Run `trillium plan --shapes` to see what is built in, or give a folder"
            raise UserError(error.given, error.why, near) from error


def plan_arms(trees: Mapping[str, Tree], planning: Planning, models: Models) -> list[Arm]:
    """Return a plan for each setting; one that cannot be planned says why."""
    reader = Reader()
    return [plan_arm(label, tree, planning, models, reader) for label, tree in trees.items()]


def plan_arm(
    label: str, tree: Tree, planning: Planning, models: Models, reader: Reader | None = None
) -> Arm:
    """Return the plan of one setting: of its own data, if there is a reader, or of assumed ones."""
    config, unread = None, ""
    try:
        config = experiment(tree)
        read: tuple[ExperimentConfig, Texts] | str = "plan.data says how many there are"
        if reader is not None and planning.data == Assumptions():
            read = reader.read(tree, config)
        if isinstance(read, str):
            unread, texts = read, assumed_texts(config, planning.data)
        else:
            config, texts = read
        found = predict(config, texts, models)
    except UserError as error:
        return Arm(label, config, refused=f"{error.given}: {error.why}. {error.instead}")
    return replace(bear(label, found, planning), unread=unread)


def bear(label: str, found: Prediction, planning: Planning) -> Arm:
    """Return what a predicted run means for the clients of each tier on their devices and links."""
    config = found.config
    tiers = by_tier(config, found.clients)
    places = {name: planning.place(config, t) for t, names in tiers.items() for name in names}
    time = None  # buffered rounds are of answers to asks of others
    if not config.buffer:
        time = course_time(found.courses, places, planning.server)
    plans = []
    for tier, names in tiers.items():
        plans.append(_tier(tier, names, found, planning.place(config, tier), time))
    return Arm(label, config, found, tuple(plans), time, refused=_server(found, planning))


def _tier(
    label: str, names: list[str], found: Prediction, place: Place, time: RoundTime | None
) -> TierPlan:
    later = [found.later[name] for name in names if name in found.later]
    memory = max(
        (found.memory[name] for name in names if name in found.memory),
        key=lambda memory: memory.peak,
        default=Memory(),
    )
    spent = [] if time is None else [time.clients[n].compute for n in names if n in time.clients]
    joules = None
    if place.device.watts is not None and spent:
        joules = place.device.watts * max(spent)
    run = Sums.mean([found.clients[name] for name in names])
    misfit = ""
    if place.device.memory is not None and run.peak_bytes > place.device.memory:
        largest = max(vars(memory).items(), key=lambda item: item[1])
        misfit = (
            f"{_need(run.peak_bytes, place.device.memory)}, "
            f"of these {largest[1] / 1e9:.3g} GB {largest[0]}"
        )
    return TierPlan(
        label,
        len(names),
        Sums.mean(later),
        run,
        memory,
        place,
        None if time is None else time.seconds,
        joules,
        misfit,
    )


def _server(found: Prediction, planning: Planning) -> str:
    room = planning.server.device.memory
    if room is None or found.server_peak_bytes <= room:
        return ""
    return f"the server {_need(found.server_peak_bytes, room)}"


def _need(count: float, room: float) -> str:
    """Return how much is needed of how much, with as many digits as tell them apart."""
    digits = 3
    while digits < 12 and f"{count:.{digits}g}" == f"{room:.{digits}g}":
        digits += 1
    return f"needs {count / 1e9:.{digits}g} GB of {room / 1e9:.{digits}g} GB"


def with_measured(arm: Arm, lines: Sequence[Line]) -> Arm:
    """Return a plan with what was measured nearest to it."""
    if arm.prediction is None:
        return arm
    return replace(arm, measured=nearest(point_of_plan(arm.prediction), lines))


def arm_to_dict(arm: Arm) -> dict[str, Any]:
    """Return a plan as values that JSON can hold."""
    result: dict[str, Any] = {"arm": arm.label, "misfit": arm.misfit}
    result["measured"] = None if arm.measured is None else arm.measured.to_dict()
    if arm.prediction is not None:
        whole = to_dict(arm.prediction)
        clients = whole.pop("clients")
        first = {
            tier: next(c for c in clients.values() if c["tier"] == tier)
            for tier in dict.fromkeys(c["tier"] for c in clients.values())
        }
        result |= whole
        result["warnings"] = arm.remarks
        result["seconds_per_round"] = None if arm.time is None else arm.time.seconds
        result["tiers"] = {
            tier.label: {
                **first[tier.label],
                "num_clients": tier.num_clients,
                "seconds_per_round": tier.seconds,
                "joules_per_round": tier.joules,
                "misfit": tier.misfit,
            }
            for tier in arm.tiers
        }
    return result
