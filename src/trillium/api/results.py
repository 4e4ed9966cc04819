"""What came of runs: tables, measures, pictures and the trained model, read from their folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillium.errors import UserError, suggest
from trillium.report.frames import evaluations_frame, ledger_frame, measures_frame, shown_frame
from trillium.report.plots import PLOT_NAMES, Plot, draw_plots
from trillium.report.reach import goals
from trillium.report.read import COMPARE_FILE, Run, read_about, read_runs
from trillium.report.summary import Row, remarks, summarise

if TYPE_CHECKING:
    from pandas import DataFrame
    from peft import PeftModel

    from trillium.experiment.trained import Trained


class Result:
    """What a folder of one run or of several holds.

    Attributes:
        folder: where it lies; `load` reads it again.
    """

    def __init__(self, folder: Path, reach: Sequence[float] = ()) -> None:
        self.folder = folder
        self._runs = read_runs(folder)
        self._rows = summarise(self._runs)
        self._goals = goals(self._rows, reach or read_about(folder).get("reach") or ())

    def table(self) -> DataFrame:
        """Return every measure of each arm as numbers; docs/metrics.md says what they mean."""
        return measures_frame(self._rows, self._goals)

    @property
    def history(self) -> DataFrame:
        """Every evaluation, one a row."""
        return evaluations_frame(self._runs, named=self._names_runs)

    @cached_property
    def ledger(self) -> DataFrame:
        """Every message that crossed, one a row."""
        return ledger_frame(self._runs, named=self._names_runs)

    def plot(self, name: str) -> Plot:
        """Draw a picture of the report, such as `bytes`; a notebook shows it, `save` writes it.

        Args:
            name: `rounds`, `bytes`, `flops`, `kinds`, `leakage`, `costs` or `partition`.

        Raises:
            UserError: there is none of that name, or nothing to draw in it.
        """
        if name not in PLOT_NAMES:
            raise UserError(f"plot({name!r})", "there is no such plot", suggest(name, PLOT_NAMES))
        drawn = draw_plots(self._rows, [name])
        if not drawn:
            others = [plot.name for plot in draw_plots(self._rows)]
            raise UserError(
                f"plot({name!r})",
                f"{self.folder} has no values for it",
                f"Draw one of: {', '.join(others) or '(none)'}",
            )
        return drawn[0]

    @property
    def report(self) -> Path:
        """The page of the report; it is written where it is not there."""
        from trillium.experiment.spent import reported

        page = self.folder / "report.html"
        return page if page.is_file() else reported(self.folder).page

    @property
    def _names_runs(self) -> bool:
        """Whether tables of single values say which run each is of."""
        return True

    def __repr__(self) -> str:
        """Return the table as the terminal shows it."""
        return "\n".join([str(self.folder), shown_frame(self._rows, self._goals).to_string()])

    def _repr_html_(self) -> str:
        table = shown_frame(self._rows, self._goals).to_html()
        said = "".join(f"<br>{escape(text)}" for text in remarks(self._rows))
        return f"{table}<small>{escape(str(self.folder))}{said}</small>"


class RunResult(Result):
    """What came of one run."""

    @property
    def _run(self) -> Run:
        return self._runs[0]

    @property
    def _names_runs(self) -> bool:
        return False

    @property
    def state(self) -> str:
        """`finished`, `running`, `stopped` or `failed`."""
        return self._run.state

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as in `config.yaml`."""
        return self._run.config

    @property
    def metrics(self) -> dict[str, float]:
        """Every measure of the run by name; docs/metrics.md says what they mean."""
        return {name: stat.mean for name, stat in self._rows[0].values.items()}

    @property
    def model(self) -> PeftModel:
        """The trained model, in evaluation mode, on the device of the run.

        With `adapter=full` it is a plain model of Transformers.

        Raises:
            UserError: the run has none, or has not finished.
        """
        return self.client_model(None)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self._trained(None).model.tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the model's outputs; none in language modelling."""
        return tuple(self._run.data.get("labels") or ())

    def client_model(self, client: str | None) -> PeftModel:
        """Return the model of a client, where clients have models of their own."""
        found = self._trained(client)
        model: PeftModel = found.model.mount(found.state).eval()
        return model

    def _trained(self, client: str | None) -> Trained:
        from trillium.experiment.trained import load_trained
        from trillium.quiet import quiet

        quiet()
        if client not in self._models:
            self._models[client] = load_trained(self.folder, client)
        return self._models[client]

    @cached_property
    def _models(self) -> dict[str | None, Trained]:
        return {}


class ComparisonResult(Result):
    """What came of several arms and seeds; `result["fedllm"]` is one of them."""

    @property
    def arms(self) -> list[str]:
        """The labels of the arms."""
        return [row.arm for row in self._rows]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Every measure by arm and name, as means over the seeds."""
        return {row.arm: {n: stat.mean for n, stat in row.values.items()} for row in self._rows}

    @property
    def failures(self) -> dict[str, dict[str, str]]:
        """Why runs have failed, by arm and seed."""
        return {row.arm: row.reasons for row in self._rows if row.reasons}

    @property
    def model(self) -> PeftModel:
        """The model of the only run; of several, each run has its own.

        Raises:
            UserError: there are several runs.
        """
        if len(self._runs) == 1:
            return RunResult(self._runs[0].folder).model
        raise UserError(
            f"the model of {self.folder}",
            f"it holds {len(self._runs)} runs, each with a model of its own",
            f"Name one: result[{self.arms[0]!r}].model, or result[{self.arms[0]!r}, SEED].model",
        )

    def __getitem__(self, key: str | tuple[str, int]) -> RunResult:
        """Return the run of an arm, or of an arm and a seed; the first seed where none is named.

        Raises:
            UserError: there is none.
        """
        arm, seed = (key, None) if isinstance(key, str) else key
        row = self._row(arm)
        for run in row.runs:
            if seed is None or run.seed == seed:
                return RunResult(run.folder)
        seeds = ", ".join(str(run.seed) for run in row.runs)
        raise UserError(f"result[{arm!r}, {seed}]", "there is no run of it", f"Seeds are: {seeds}")

    def _row(self, arm: str) -> Row:
        for row in self._rows:
            if row.arm == arm:
                return row
        raise UserError(f"result[{arm!r}]", "there is no such arm", suggest(arm, self.arms))

    def __iter__(self) -> Iterator[str]:
        """Return the labels of the arms."""
        return iter(self.arms)


def load(folder: str | Path) -> RunResult | ComparisonResult:
    """Return what a run or comparison has left in its folder, finished or not.

    Raises:
        UserError: it is neither.
    """
    path = Path(folder)
    return (ComparisonResult if (path / COMPARE_FILE).is_file() else RunResult)(path)
