"""A public set that the server writes itself, for those who have none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trillium.data.federated import FederatedData
from trillium.data.load import row_keys
from trillium.data.sources.files import read_table
from trillium.errors import UserError
from trillium.files import write_atomic

if TYPE_CHECKING:
    from datasets import Dataset

    from trillium.config.experiment import ExperimentConfig
    from trillium.data.publics import Row
    from trillium.models.load import LanguageModel
    from trillium.training.meters import Meter

PUBLIC: Final = "public.jsonl"
TRIES: Final = 10  # texts that are written for each one that is wanted, at most


def with_public(
    config: ExperimentConfig,
    model: LanguageModel,
    data: FederatedData,
    meter: Meter,
    folder: Path | None,
    resumes: bool,
) -> FederatedData:
    """Return the data with the public set that `data.public` writes, if it does and one is needed.

    Clients keep the set that they were sent, so a run that goes on takes the same one from its folder:
    another machine might write other texts.

    Args:
        data: all that this process knows of: no text of its test and clients is written.
        folder: of the run, where the texts are kept; `None` keeps them nowhere.

    Raises:
        UserError: the texts cannot be written, or too few of them differ.
    """
    public = config.data.public
    if not public.is_written or not config.framework.needs_public:
        return data
    path = None if folder is None else folder / PUBLIC
    if resumes and path is not None and path.is_file():
        return replace(data, public=_kept(path), public_from=public.name)
    rows = _write(config, model, data, meter)
    if path is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_atomic(path, "".join(lines))
    return replace(data, public=rows, public_from=public.name)


def _kept(path: Path) -> Dataset:
    """Return the rows that `with_public` kept."""
    from datasets import Dataset

    table = read_table(path)
    return Dataset.from_dict({name: table.read(name) for name in table.names})


def _write(
    config: ExperimentConfig, model: LanguageModel, data: FederatedData, meter: Meter
) -> Dataset:
    """Return rows with different texts, none of them a text of the data."""
    from datasets import Dataset

    public, size = config.data.public, config.public_size
    if "messages" in data.test.column_names:
        raise UserError(
            f"data.public={public.name} with rows in the chat form",
            "it writes prompts and completions, and not turns of a chat",
            "Write data.public=rows, or name the columns prompt and completion",
        )
    taken = {key for rows in (data.test, *data.clients.values()) for key in row_keys(rows)}
    found: list[Row] = []
    count = 0
    for batch in public.write(config.task, config.of(None).model, model, config.seed, meter):
        rows = Dataset.from_list(batch)
        found += _new(rows, taken)
        count += len(batch)
        if len(found) >= size:
            return Dataset.from_list(found[:size])
        if count >= TRIES * size:
            break
    raise UserError(
        f"data.public={public.name} with data.public_size={size}",
        f"of {count} texts only {len(found)} are neither blank, nor written twice, nor test or "
        "training rows",
        f"Write data.public_size={len(found)} or less, or let texts be longer and more varied",
    )


def _new(rows: Dataset, taken: set[str]) -> list[Row]:
    """Return the rows with texts that were not met before, and remember them."""
    found = []
    for row, key in zip(rows, row_keys(rows), strict=True):
        if key in taken or not next(reversed(row.values())).strip():
            continue
        taken.add(key)
        found.append(row)
    return found
