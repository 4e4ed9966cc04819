"""The models of a process, which all of its clients share that have the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trillium.config.experiment import ExperimentConfig
from trillium.experiment.fit import check_lengths
from trillium.models.base import ModelConfig
from trillium.models.checkpointing import checkpoint_blocks
from trillium.models.load import LanguageModel, load_model
from trillium.models.own import Ends
from trillium.tasks import Example
from trillium.training.meters import CostCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resident:
    """A model of this process, and what the clients who have it share."""

    model: LanguageModel
    cache: CostCache
    test: list[Example]


class Residents:
    """The models of this process, each loaded when it is first asked for.

    Args:
        test: gives the held-out data in the tokens of a model.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        labels: Sequence[str],
        test: Callable[[ModelConfig], list[Example]],
    ) -> None:
        self._config, self._labels, self._test = config, labels, test
        self._found: list[tuple[ExperimentConfig, Resident]] = []

    def of(self, client: str | None) -> Resident:
        """Return the model of a client, or of the server for `None`."""
        own = self._config.of(client)
        for config, resident in self._found:
            if config == own:
                return resident
        model, test = resident_model(own, self._labels), self._test(own.model)
        check_lengths(own, model, [test])
        resident = Resident(model, {}, test)
        self._found.append((own, resident))
        return resident


def resident_model(
    config: ExperimentConfig, labels: Sequence[str], ends: Ends | None = None
) -> LanguageModel:
    """Load the model of a configuration.

    Args:
        config: as one side sees it (`ExperimentConfig.of`).
        labels: class names; none for language modelling.
        ends: what of the model is wanted, where not the whole.
    """
    log.info("loading model: %s", config.model.id)
    model = load_model(
        config.model,
        config.adapter,
        auto_class=config.task.auto_class,
        peft_task=config.task.peft_task,
        problem_type=config.task.problem_type,
        labels=labels,
        seed=config.seed,
        ends=ends,
    )
    if config.training.gradient_checkpointing:
        checkpoint_blocks(model.module)
    if config.framework.trains:
        config.training.prepare(model)
    return model
