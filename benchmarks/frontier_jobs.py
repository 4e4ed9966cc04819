"""The runs of a frontier benchmark: what each is, whether it has finished, and how they are made."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from frontier_cache import PrefixCache, cached_prefix, check_cached
from frontier_teacher import watched_teachers
from trillium.adapters.lora import Lora
from trillium.config import ExperimentConfig, Tree, experiment, read_yaml
from trillium.errors import UserError
from trillium.experiment import build
from trillium.run_folder import RunFolder, is_finished


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
    if written.is_file() and read_yaml(written) != job.tree:
        raise UserError(
            str(job.folder),
            "it holds a run of other settings",
            "Remove it, or give another folder with --runs",
        )
    return (job.folder / "status.json").is_file() and is_finished(job.folder)


def run(job: Job, caches: Path) -> str:
    """Make one run, or go on with it; returns what failed, nothing if all went well."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    begun = (job.folder / "status.json").is_file()
    folder = RunFolder.reopen(job.folder) if begun else RunFolder(job.folder, job.arm)
    try:
        _run(job.config(), folder, caches)
    except Exception as error:  # the others go on
        reason = f"{type(error).__name__}: {error}"
        folder.status("failed", reason)
        return reason
    return ""


def _run(config: ExperimentConfig, folder: RunFolder, caches: Path) -> None:
    built = build(config, folder, argv=sys.argv)
    assert isinstance(config.adapter, Lora)
    examples = [*built.server.pooled, *built.server.test, *built.server.public]
    depth = min(config.adapter.layers or (0,))
    cache = PrefixCache.of(built.model, depth, examples, caches)
    check_cached(built.model, cache, examples[:8])
    with cached_prefix(built.model, cache), watched_teachers(built.server, folder.path):
        built.run()


def run_all(todo: Iterable[Job], workers: int, caches: Path) -> Iterator[tuple[Job, str]]:
    """Make runs in so many processes and yield each, when it has ended, with what failed."""
    if workers == 1:
        for job in todo:
            yield job, run(job, caches)
        return
    # A started process: one that is forked would inherit PyTorch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run, job, caches): job for job in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
