"""From a recipe to a deployment, and to a first try of it on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trillium.config.experiment import ExperimentConfig
from trillium.config.places import located
from trillium.config.texts import Texts, in_model_order
from trillium.data.deployed import no_rows, write_rows, write_server_data
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.data.sources.nodes import Nodes
from trillium.deploy.flower import RunStatus, Value
from trillium.deploy.folder import write_app
from trillium.deploy.keys import make_keys
from trillium.deploy.launch import HOST, Federation
from trillium.deploy.processes import free_port
from trillium.errors import UserError
from trillium.experiment.folder import to_yaml
from trillium.federation.tiers import COMMON
from trillium.models.part_folder import write_part

RUNS: Final = Path("server") / "runs"


def deploy(
    config: ExperimentConfig,
    target: Path,
    names: Sequence[str],
    settings: Mapping[str, Value],
    *,
    with_part: bool = False,
    clients: bool = False,
) -> FederatedData:
    """Write the Flower app of a recipe, what is around it, and the server's own data; return all data.

    The rows that would be the clients' are not written anywhere.

    Args:
        with_part: whether to write the clients' part of the model, too.
        clients: whether the rows that would be theirs are wanted.
    """
    ends = config.framework.ends(COMMON) if with_part else None
    if with_part and (ends is None or config.head.runs_model):
        raise UserError(
            f"--part with framework={config.framework.name}, head={config.head.name}",
            "its clients run the whole model",
            "Write framework=split and head=random, or leave --part out",
        )
    data = server_data(config, clients=clients)
    if data.labels:
        data = in_model_order(config, data)
    if data.labels or config.task.peft_task == "CAUSAL_LM":
        config = Texts(config, data.labels).fit(data)
    staging = target.with_name(f".{target.name}.part")
    if ends is not None:  # first, for it may fail
        write_part(config.model, config.task.auto_class, data.labels, ends, staging)
    recipe = to_yaml(config.tree())
    write_app(target, recipe_text=recipe, settings=settings, names=names)
    write_server_data(target / "server" / "data", data)
    if ends is not None:
        staging.rename(target / "part")
    return data


def server_data(config: ExperimentConfig, *, clients: bool) -> FederatedData:
    """Return what the server of a deployment has: test rows, public set, names of the classes.

    Raises:
        UserError: it must have some of these, and has not.
    """
    form, source = config.task.data_form, config.data.source
    if not isinstance(source, Nodes):
        return load_data(config.data, form, config.seed, config.public_size, clients=clients)
    named, needed = config.data.labels, config.public_size and not config.data.public.is_written
    if config.evaluation.where != "clients":
        raise UserError(
            f"data.source=nodes with evaluation.where={config.evaluation.where}",
            "the server has no rows to measure on",
            "Write evaluation.where=clients, or data.source={name: files, …} with test rows",
        )
    if named is None and config.task.peft_task != "CAUSAL_LM":
        raise UserError(
            "data.source=nodes without data.labels",
            "the server has no rows that would name the classes",
            "Write data.labels=[…], or union, and the nodes say which they have",
        )
    if needed:
        raise UserError(
            f"data.source=nodes with framework={config.framework.name}",
            "it needs a public set, and the server has no rows to make it of",
            "Write data.public=words, or data.source={name: files, train: …} with public rows",
        )
    none = no_rows(form)
    return FederatedData({}, none, none, named if isinstance(named, tuple) else ())


def prepare_here(config: ExperimentConfig, target: Path) -> dict[str, dict[str, Value]]:
    """Write a deployment of the recipe's clients on this machine; return each node's configuration."""
    config = located(config)  # the processes run elsewhere
    address = f"{HOST}:{free_port(HOST)}"
    num_clients = config.data.num_clients
    names = config.data.names()
    settings: dict[str, Value] = {"session-address": address, "session-bind": address}
    data = deploy(config, target, names, settings, clients=True)
    if data.clients.keys() != {*names}:
        raise UserError(
            f"data.num_clients={num_clients}",
            f"the partition makes {len(data.clients)} clients of the data",
            f"Write data.num_clients={len(data.clients)}",
        )
    make_keys(target / "keys", [HOST, "localhost"], names)
    nodes: dict[str, dict[str, Value]] = {}
    for name, rows in data.clients.items():
        folder, keys = (target / "nodes" / name).resolve(), (target / "keys").resolve()
        source = config.data.source
        write_rows(folder / "train.jsonl", rows, data.labels, source)
        test: dict[str, Value] = {}
        if config.evaluation.where == "server":  # else each holds back some of its own
            write_rows(folder / "test.jsonl", data.test, data.labels, source)
            test = {"test": str(folder / "test.jsonl")}
        nodes[name] = {
            "name": name,
            "data": str(folder / "train.jsonl"),
            **test,
            "certificate": str(keys / "nodes" / name / "client.crt"),
            "key": str(keys / "nodes" / name / "client.key"),
            "authority": str(keys / "ca.crt"),
            "state": str(folder / "state"),
        }
    return nodes


def federation(target: Path, nodes: Mapping[str, Mapping[str, Value]]) -> Federation:
    """Return the processes of a deployment on this machine, which share its cores, not started yet."""
    cores = os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // len(nodes))))
    return Federation(
        target / "app",
        target / "work",
        keys=target / "keys",
        nodes=nodes,
        variables={"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
    )


def up(
    config: ExperimentConfig, target: Path, on_line: Callable[[str], object]
) -> tuple[RunStatus, Path | None]:
    """Run a recipe as a deployment on this machine: real processes, TLS, node authentication.

    All is written below `target`, a new folder, and each line of the server's log handed on.
    Returned are how the run ended, and its run folder if it came to have one.
    """
    nodes = prepare_here(config, target)
    with federation(target, nodes) as running:
        run = running.submit()
        status = running.wait(run, float("inf"), on_line)
    found = sorted((target / RUNS).glob("*/status.json"))
    return status, found[-1].parent if found else None
