"""The same experiment under several frameworks and seeds, in one folder with one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trillium.config.experiment import ExperimentConfig, experiment, read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder, claim, is_finished, to_yaml
from trillium.experiment.run import Observer, build
from trillium.federation.fleet import RoundFailed
from trillium.files import write_atomic
from trillium.wire.ledger import Entry


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
        folder: made, or empty; gets `compare.yaml` and a run folder for each arm and seed.
        begin: called before each run; what it returns is called with each evaluation.
        watch: called with every entry of the ledgers.
    """
    claim(folder)
    arms = {f"{arm}_s{seed}": config.tree() for (arm, seed), config in experiments.items()}
    write_atomic(folder / "compare.yaml", to_yaml(arms))
    return run_arms(experiments, folder, begin=begin, watch=watch, argv=argv)


def run_arms(
    experiments: Mapping[tuple[str, int], ExperimentConfig],
    folder: Path,
    *,
    begin: Callable[[str, int], Observer] | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> dict[tuple[str, int], str]:
    """Run those arms of a comparison that have not finished, and return the failures.

    The arguments are those of `compare`; the folder is there.
    """
    failures: dict[tuple[str, int], str] = {}
    for (arm, seed), config in experiments.items():
        path = folder / f"{arm}_s{seed}"
        if path.exists() and is_finished(path):
            continue
        observe = begin(arm, seed) if begin is not None else None
        run_folder = RunFolder.reopen(path) if path.exists() else RunFolder(path, arm)
        try:
            run_one(config, run_folder, observe, watch, argv)
        except (RoundFailed, UserError) as error:
            failures[arm, seed] = str(error)
    return failures


def stopped(folder: Path) -> dict[tuple[str, int], ExperimentConfig]:
    """Return the experiments of a stopped run, or of a comparison: those that have not finished.

    Raises:
        UserError: the folder is neither, or all of it has finished.
    """
    if (folder / "compare.yaml").is_file():
        found = {}
        for label, tree in read_yaml(folder / "compare.yaml").items():
            arm, _, seed = label.rpartition("_s")
            if not ((folder / label).exists() and is_finished(folder / label)):
                found[arm, int(seed)] = experiment(tree)
        if not found:
            raise UserError(
                str(folder), "this comparison has finished", f"Write: trillium report {folder}"
            )
        return found
    if not (folder / "status.json").is_file():
        raise UserError(
            str(folder), "it is neither a run nor a comparison", "Run `trillium ls` to see them"
        )
    if is_finished(folder):
        raise UserError(str(folder), "this run has finished", f"Write: trillium report {folder}")
    if not (folder / "config.yaml").is_file():
        raise UserError(
            str(folder),
            "this run was stopped before it had begun",
            "Start it anew; nothing is lost",
        )
    config = experiment(read_yaml(folder / "config.yaml"))
    return {(config.framework.name, config.seed): config}


def run_one(
    config: ExperimentConfig,
    folder: RunFolder,
    observe: Observer | None = None,
    watch: Callable[[Entry], None] | None = None,
    argv: Sequence[str] = (),
) -> None:
    """Build, plan and run one experiment into its folder.

    Whatever fails is written there, then raised.
    """
    try:
        experiment = build(config, folder, watch, argv)
        if not (folder.path / "plan.json").exists():
            # Imported here: tensors without values take a second to load.
            from trillium.plan.result import plan_of_run

            folder.json("plan.json", plan_of_run(config, experiment.server, experiment.clients))
    except BaseException as error:
        folder.status("failed", f"{type(error).__name__}: {error}")
        raise
    experiment.run(observe)
