"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

import tiny
from cli_help import Cli
from trillium.component import Component, known
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.data.partitions import Partition
from trillium.data.settings import DataConfig
from trillium.experiment import run
from trillium.frameworks import Framework
from trillium.frameworks.fedllm.aggregators import Aggregator
from trillium.frameworks.fedllm.masks import Mask
from trillium.training import meters
from trillium.training.counting import Count
from trillium.wire.codecs import Codec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARED = Path(__file__).parents[2] / "shared"
COMPONENTS: tuple[type[Component], ...] = (Aggregator, Codec, Mask, Partition, Framework)
NODES = [f"client-{number}" for number in range(4)]


pytest.register_assert_rewrite("deployed", "rayed", "resumed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs benchmark data that is not beside the repository."""
    for mark in item.iter_markers("shared_data"):
        if not SHARED.joinpath(*mark.args).exists():
            pytest.skip(f"{SHARED.joinpath(*mark.args)} is not there")


def pytest_collection_finish() -> None:
    """Keep what is imported out of garbage collections, a twelfth of the time of a federation."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Undo what a node or the command line does to the log, so that later tests can read it."""
    logger = logging.getLogger("trillium")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models in hub format and of data files."""
    return tiny.write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True, scope="session")
def rows_read_once(hub: Path) -> Iterator[None]:
    """Read and divide the hub's files once for all federations that divide them alike."""
    found: dict[tuple[str, str, int, int], FederatedData] = {}

    def once(config: DataConfig, task: str, seed: int, public_size: int) -> FederatedData:
        key = (config.model_dump_json(), task, seed, public_size)
        if config.source.name != "files" or str(hub) not in key[0]:
            return load_data(config, task, seed, public_size)
        if key not in found:
            found[key] = load_data(config, task, seed, public_size)
        return replace(found[key], clients=dict(found[key].clients))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "load_data", once)
        yield


@pytest.fixture(autouse=True, scope="module")
def one_picture(request: pytest.FixtureRequest) -> Iterator[None]:
    """Render one picture for all that a file of `tests/cli` draws, a quarter of the time of a report.

    Figures are made nevertheless; `tests/unit` and `tests/browser` look at what is rendered.
    """
    if request.path.parent.name != "cli":
        yield
        return
    from trillium.report import plots, style

    png, rendered = style.png, list[bytes]()

    def once(figure: Figure) -> bytes:
        if not rendered:
            rendered.append(png(figure))
        return rendered[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plots, "png", once)
        yield


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of certificates for a server on this machine, three nodes and the tiny clients."""
    from trillium.deploy.keys import make_keys

    folder = tmp_path_factory.mktemp("certificates") / "keys"
    make_keys(folder, ["127.0.0.1", "localhost"], ["a", "b", "c", *NODES])
    return folder


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count neither FLOPs nor memory, two fifths of the time of a federation.

    For what looks at weights and bytes alone. That counting alters nothing `test_meters.py` shows, and
    `test_fedllm.py`, `test_kd.py` and `test_split_cache.py`, which hold what was counted to PyTorch.
    """

    @contextmanager
    def nothing(device: torch.device, resident: Callable[[], Iterable[Tensor]]) -> Iterator[Count]:
        yield Count(device)

    monkeypatch.setattr(meters, "counting", nothing)


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget the components that a test defines, so that no other test meets them."""
    before = {kind: dict(known(kind)) for kind in COMPONENTS}
    yield
    for kind, members in before.items():
        kind.members.clear()
        kind.members.update(members)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, for its tests."""
    return Cli(monkeypatch, capsys)


@pytest.fixture
def words(hub: Path) -> list[str]:
    """Settings of a run of a second, as the command line takes them."""
    return [
        f"--model={hub / 'bert'}",
        f"--data={hub / 'classification.jsonl'}",
        "model.random_weights=true",
        "data.public_size=12",
        "data.num_clients=2",
        "adapter.target_modules=[query]",
    ]
