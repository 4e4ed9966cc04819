"""Where a deployment puts its runs: one at a time, and one that was stopped goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.engines.settings import Settings
from trillium.experiment.folder import RunFolder, is_finished, locked, new_folder
from trillium.experiment.run import SERVER
from trillium.federation.checkpoint import Checkpoints

log = logging.getLogger(__name__)


@contextmanager
def alone(runs: Path) -> Iterator[None]:
    """Hold a folder of runs for one run; the end of the process ends it at the latest.

    Raises:
        UserError: another run is under way.
    """
    runs.mkdir(parents=True, exist_ok=True)
    lock = locked(runs)
    try:
        yield
    finally:
        lock.release()


def take_folder(config: ExperimentConfig, settings: Settings) -> RunFolder:
    """Return the folder of the newest unfinished run of a recipe, or a new one."""
    name = f"{config.framework.name}_{config.data.source.name}_s{config.seed}"
    parent = settings.run_folder
    tree = located(config).tree()
    for path in sorted(parent.glob(f"*_{name}*"), reverse=True) if settings.resume else ():
        # One that was stopped before its first checkpoint holds nothing to go on from.
        if Checkpoints(path / "checkpoints").numbers(SERVER) and not is_finished(path):
            written = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
            if written == tree:
                log.info("%s is unfinished and goes on; resume=false begins another", path.name)
                return RunFolder.reopen(path, deployed=True)
    return RunFolder(new_folder(parent, name), config.framework.name, deployed=True)
