"""The runs of a frontier benchmark: what each is, whether it has finished, and how they are made."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from frontier_cache import PrefixCache, cached_prefix, check_cached
from frontier_teacher import watched_teachers
from trillium.config.experiment import ExperimentConfig, Tree, experiment, read_yaml
from trillium.errors import UserError
from trillium.experiment.folder import RunFolder, is_finished
from trillium.experiment.run import build
from trillium.federation.side import Metrics
from trillium.models.adapters.lora import Lora


@dataclass(frozen=True)
class Job:
    """One run to make.

    Attributes:
        partition, arm, seed: what it is.
        tree: its configuration.
        folder: where it goes.
    """

    partition: str
    arm: str
    seed: int
    tree: Tree
    folder: Path

    @property
    def label(self) -> str:
        """What the log calls it."""
        return f"{self.partition} {self.arm} seed {self.seed}"

    def config(self) -> ExperimentConfig:
        """Return the checked configuration."""
        return experiment(self.tree)


def is_done(job: Job) -> bool:
    """Whether a run has finished.

    Raises:
        UserError: there is one of the same name and another configuration.
    """
    written = job.folder / "config.yaml"
    if written.is_file() and experiment(read_yaml(written)).tree() != job.tree:
        raise UserError(
            str(job.folder),
            "it holds a run of other settings",
            "Remove it, or give another folder with --runs",
        )
    return (job.folder / "status.json").is_file() and is_finished(job.folder)


Make = Callable[[ExperimentConfig, RunFolder], None]
"""Makes a run of a configuration in a folder; started processes must be able to import it."""


def run(job: Job, make: Make) -> str:
    """Make one run, or go on with it; returns what failed, nothing if all went well."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    begun = (job.folder / "status.json").is_file()
    folder = RunFolder.reopen(job.folder) if begun else RunFolder(job.folder, job.arm)
    try:
        make(job.config(), folder)
    except Exception as error:  # the others go on
        reason = f"{type(error).__name__}: {error}"
        folder.status("failed", reason)
        return reason
    return ""


def looked_up(caches: Path, config: ExperimentConfig, folder: RunFolder) -> None:
    """Make a run whose frozen blocks are looked up in files in the folder `caches`."""
    built = build(config, folder, argv=sys.argv)
    assert isinstance(config.adapter, Lora)
    examples = [*built.server.pooled, *built.server.test, *built.server.public]
    depth = min(config.adapter.layers or (0,))
    cache = PrefixCache.of(built.model, depth, examples, caches)
    check_cached(built.model, cache, examples[:8])
    with cached_prefix(built.model, cache), watched_teachers(built.server, folder.path):
        built.run()


def shipped_only(config: ExperimentConfig, folder: RunFolder) -> None:
    """Make a run in which the model before the first round is not measured: two rows stand for it."""
    built = build(config, folder, argv=sys.argv)
    test, built.server.test = built.server.test, built.server.test[:2]
    if built.server.round:
        built.server.test = test

    def see(line: Metrics) -> None:
        built.server.test = test

    built.run(see)


def run_all(todo: Iterable[Job], workers: int, make: Make) -> Iterator[tuple[Job, str]]:
    """Make runs in so many processes and yield each, when it has ended, with what failed."""
    if workers == 1:
        for job in todo:
            yield job, run(job, make)
        return
    # A started process: one that is forked would inherit PyTorch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run, job, make): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
