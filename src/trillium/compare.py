"""The same experiment under several frameworks and seeds, in one folder with one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trillium.config import ExperimentConfig
from trillium.errors import UserError
from trillium.experiment import Observer, build
from trillium.fleet import RoundFailed
from trillium.ledger import Entry
from trillium.run_folder import RunFolder, to_yaml, write_atomic


def compare(
    experiments: Mapping[tuple[str, int], ExperimentConfig],
    folder: Path,
    *,
    begin: Callable[[str, int], Observer] | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> dict[tuple[str, int], str]:
    """Run each arm with each seed and return the failures.

    An arm that fails, in a round or because the model does not allow it, is written down as failed,
    and the others go on.

    Args:
        experiments: checked configurations by arm and seed.
        folder: made; gets `compare.yaml` and a run folder for each arm and seed.
        begin: called before each run; what it returns is called with each evaluation.
        watch: called with every entry of the ledgers.
        argv: the command, for the record.
    """
    folder.mkdir(parents=True)
    arms = {f"{arm}_s{seed}": config.tree() for (arm, seed), config in experiments.items()}
    write_atomic(folder / "compare.yaml", to_yaml(arms))
    failures: dict[tuple[str, int], str] = {}
    for (arm, seed), config in experiments.items():
        observe = begin(arm, seed) if begin is not None else None
        run_folder = RunFolder(folder / f"{arm}_s{seed}", arm)
        try:
            run_one(config, run_folder, observe, watch, argv)
        except (RoundFailed, UserError) as error:
            failures[arm, seed] = str(error)
    return failures


def run_one(
    config: ExperimentConfig,
    folder: RunFolder,
    observe: Observer | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> None:
    """Build and run one experiment into its folder; whatever fails is written there, then raised."""
    try:
        experiment = build(config, folder, watch, argv)
    except BaseException as error:
        folder.status("failed", f"{type(error).__name__}: {error}")
        raise
    experiment.run(observe)
