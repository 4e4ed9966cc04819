"""EleutherAI's evaluation harness (Gao et al., 2024, package lm-eval) on the model of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trillium.config.experiment import Tree
from trillium.errors import UserError
from trillium.experiment.trained import MOVED, load_trained, refuse_others, run_config
from trillium.extras import install
from trillium.tasks.language import LanguageTask

SETTINGS: Final = ("evaluation.batch_tokens", *MOVED)
Results = dict[str, dict[str, float]]
"""Metrics by task; one that is of a filter has its name behind it."""


def harness_run(
    folder: Path, tasks: Sequence[str], changes: Tree, client: str | None = None
) -> Results:
    """Return what the harness measures of a run's model, or that of a client, as it is exported.

    If the run's rows were chats, prompts get the chat template.

    Args:
        tasks: names that the harness knows, whose data come from the hub, or YAML files of tasks.
        changes: settings that are to be others than in the run.

    Raises:
        UserError: the harness is not installed, knows no such task or fails at it, or the folder holds
            no language model.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "--lm-eval", "the package lm-eval is not installed", install("lm-eval")
        ) from error
    refuse_others(changes, SETTINGS, "eval --lm-eval")
    if not isinstance(task := run_config(folder).task, LanguageTask):
        raise UserError(
            f"--lm-eval with {folder}",
            f"the harness asks language models, and this one was trained for task={task.name}",
            "Give the folder of a run with task=causal_lm",
        )
    files = [task for task in tasks if Path(task).suffix in (".yaml", ".yml")]
    manager = TaskManager(include_defaults=len(files) < len(tasks))
    specs = [_read(task) if task in files else _known(task, manager) for task in tasks]
    found = load_trained(folder, client, changes)
    module = found.model.mount(found.state).eval()
    rows = found.config.evaluation.batch_tokens // found.config.training.limit
    model = HFLM(pretrained=module, tokenizer=found.model.tokenizer, batch_size=max(rows, 1))
    try:
        told = simple_evaluate(
            model,
            tasks=specs,
            task_manager=manager,
            apply_chat_template=task.chats(found.columns),
            log_samples=False,
        )
    except Exception as error:  # of tasks, which are code and data from elsewhere
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"--lm-eval {','.join(tasks)}",
            f"the harness cannot run it ({first})",
            "Look at its data: those of the harness's own tasks come from the hub",
        ) from error
    return {task: dict(_metrics(values)) for task, values in told["results"].items()}


def _read(task: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(task))
    except Exception as error:  # whatever a file holds
        raise UserError(
            f"--lm-eval {task}", f"it cannot be read ({error})", "Give the YAML file of a task"
        ) from error


def _known(task: str, manager: Any) -> str:
    if not manager.match_tasks([task]):
        raise UserError(
            f"--lm-eval {task}",
            "the harness has no such task",
            "Write one that `lm_eval ls tasks` lists, or the YAML file of a task",
        )
    return task


def _metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a task; the harness names them `metric,filter`."""
    for key, value in values.items():
        name, _, chosen = key.partition(",")
        if chosen and isinstance(value, int | float):
            yield name if chosen == "none" else f"{name} ({chosen})", float(value)
