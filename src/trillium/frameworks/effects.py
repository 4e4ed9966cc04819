"""What crosses, and so what codecs may do to it; which settings act, and so which are refused.

A framework says two things of itself: what its tensors are (`crossings`), and which settings it never
reads (`no_effect`). The rules that follow are here, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from trillium.errors import UserError
from trillium.federation.setting import Setting
from trillium.wire.codecs import Codec
from trillium.wire.kinds import Kind, Nature

Direction = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("up", "down")
_WHOLE_NUMBERS: Final = (
    "labels",
    "public",
    "control",
    "sums",
)  # kinds that codecs of floats leave alone
_WHY: Final[Mapping[Nature, str]] = {
    "values": "the values themselves cross, and it keeps too little of a tensor to replace it",
    "changes": "it is not made for changes",
    "gradients": "it is not made for gradients",
    "activations": "too little of a text would be left",
    "log_probabilities": "of most classes nothing would be left, and what is no distribution teaches "
    "nothing",
}


@dataclass(frozen=True)
class Crossing:
    """What the tensors of a kind are in one direction.

    Attributes:
        changes: what to write so that changes cross instead of values, if there is such a setting.
    """

    nature: Nature
    changes: str = ""


Crossings = Mapping[tuple[Direction, Kind], Crossing]


@runtime_checkable
class Crosses(Protocol):
    """What says of itself what it sends and reads: a framework, or a head."""

    def crossings(self, config: Setting) -> Crossings:
        """Return what crosses beside control, by direction and kind."""

    def no_effect(self, config: Setting) -> Mapping[str, str]:
        """Return the settings that a run never reads, by path, and why."""


class NoEffect(UserError):  # noqa: N818 - it is what a setting has, and is caught by name
    """A setting that this run never reads; where several runs share it, another may.

    Attributes:
        path: of the setting, with the number of a codec in its list.
    """

    def __init__(self, given: str, why: str, instead: str, path: str) -> None:
        super().__init__(given, why, instead)
        self.path = path

    def __reduce__(self) -> tuple[type[NoEffect], tuple[str, str, str, str]]:  # type: ignore[override]
        """Pickle it whole."""
        return type(self), (self.given, self.why, self.instead, self.path)


def codecs(setting: Setting) -> Iterator[tuple[str, int, Direction, Codec]]:
    """Yield all codecs that are written: the path of their list, their place in it, and themselves."""
    stacks = {"wire": (setting.wire.up, setting.wire.down)}
    stacks |= {f"tiers.{label}": (t.up or (), t.down or ()) for label, t in setting.tiers.items()}
    for where, both in stacks.items():
        for direction, stack in zip(DIRECTIONS, both, strict=True):
            for place, codec in enumerate(stack):
                yield f"{where}.{direction}", place, direction, codec


def _met(codec: Codec, direction: Direction, crossings: Crossings) -> dict[Kind, Crossing]:
    """Return what a codec is applied to."""
    everywhere = {**crossings, (direction, "control"): Crossing("values")}
    return {
        kind: everywhere[direction, kind]
        for kind in codec.kinds
        if (direction, kind) in everywhere and (codec.any_dtype or kind not in _WHOLE_NUMBERS)
    }


def check_codecs(name: str, setting: Setting, crossings: Crossings) -> None:
    """Refuse a codec that leaves too little of what it is applied to."""
    for where, _, direction, codec in codecs(setting):
        met = _met(codec, direction, crossings)
        if "control" in codec.kinds and not codec.lossless:
            raise UserError(
                f"{where}: {codec.name} for control",
                "these are counts, weights and steps that both sides must read exactly",
                "Take control out of its kinds; zstd may stay",
            )
        for kind, found in met.items():
            if found.nature in codec.suits:
                continue
            fitting = [other for other, way in met.items() if way.nature in codec.suits]
            ways = [f"kinds: [{', '.join(fitting)}] beside it"] if fitting else []
            ways += [found.changes] if found.changes else []
            raise UserError(
                f"{where}: {codec.name} for {kind} under framework={name}",
                _WHY[found.nature],
                f"Write {', or '.join(ways) if ways else 'another codec, such as int8'}",
            )


def idle(name: str, setting: Setting, crossings: Crossings) -> Iterator[NoEffect]:
    """Yield the codecs that are applied to nothing."""
    for where, place, direction, codec in codecs(setting):
        if not _met(codec, direction, crossings):
            kinds = sorted(kind for way, kind in crossings if way == direction)
            yield NoEffect(
                f"{where}: {codec.name} under framework={name}",
                f"of what it is for ({', '.join(codec.kinds)}) nothing is sent {direction} in this run",
                f"Leave it out; what crosses is {', '.join(kinds) or 'control'}",
                f"{where}.{place}",
            )


def unread(name: str, setting: Setting, no_effect: Mapping[str, str]) -> Iterator[NoEffect]:
    """Yield the settings that differ from their defaults, and that nothing reads.

    Args:
        no_effect: by path, why; `*` stands for any label, and a path for all that is below it.
    """
    given = [*changed(setting)] if no_effect else []
    for pattern, why in no_effect.items():
        for path, value in given:
            if fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*"):
                yield NoEffect(
                    f"{path}={value} under framework={name}", why, f"Leave {path} out", path
                )


def changed(value: Any, default: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings below a value that are not as they are by default, by path."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        if type(default) is not type(value):
            default = {key: field.get_default() for key, field in fields.items()}
        else:
            default = {key: getattr(default, key) for key in fields}
        value = {key: getattr(value, key) for key in fields} | (value.model_extra or {})
    if isinstance(value, Mapping) and (value or isinstance(default, Mapping)):
        known = default if isinstance(default, Mapping) else {}
        for key, item in value.items():
            yield from changed(item, known.get(key), f"{path}.{key}" if path else str(key))
    elif value != default:
        yield path, value
