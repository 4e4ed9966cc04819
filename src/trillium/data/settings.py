"""Which rows a run has, and who has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trillium.component import Choice
from trillium.data.partitions import Partition
from trillium.data.partitions.iid import IID
from trillium.data.publics import Public
from trillium.data.publics.rows import Rows
from trillium.data.sources import Source
from trillium.data.sources.builtin import Builtin
from trillium.errors import UserError
from trillium.files import CLIENT_NAME, CLIENT_NAME_RULE, SERVER

if TYPE_CHECKING:
    from trillium.tasks import Task


class DataConfig(BaseModel):
    """Which rows, and who has them.

    Attributes:
        source: where the rows come from.
        labels: names of the classes, in their order; or how they follow from those that clients have:
            all that any has (`union`), or the same ones of each (`fixed`), which nodes say before a
            run; null takes those of the training rows that are here.
        partition: how the training rows are divided among the clients.
        num_clients: number of clients.
        client_names: what they are called; `client-0`, `client-1`, … by default. Random streams go by
            name, so a simulation with the names of a deployment's nodes draws what these draw.
        public: where the public set comes from.
        public_size: rows that all sides hold, if something needs a public set; 256 by default.
            Where nothing does, no row is taken from the clients.
        set_aside: training rows that nobody has, so that a run without a public set has the same others
            as one with so large a set. Comparisons set it.
        test_size: most test rows to keep, a random sample; null keeps all.
        test_fraction: share of the training rows held back where the source has no test split; 0 where
            the clients measure, and the server has no test rows.
        split_seed: draws the test and validation rows, and rows that are generated, so that runs of
            several seeds are measured on the same ones; null takes the seed of the run, and a deviation
            over seeds is then also one of test rows.
        unusable: what happens to a client if nothing can be learnt from its rows, because all
            answers are empty or cut away: `refuse` the run, or `leave_out` the client.
        validation_fraction: share of the training rows that are measured in place of the test rows,
            to choose settings; no run of this configuration sees the test rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Choice[Source] = Builtin()
    labels: tuple[str, ...] | Literal["union", "fixed"] | None = None
    partition: Choice[Partition] = IID()
    num_clients: int = Field(default=4, ge=1)
    client_names: tuple[str, ...] | None = None
    public: Choice[Public] = Rows()
    public_size: int | None = Field(default=None, ge=0)
    set_aside: int = Field(default=0, ge=0)
    test_size: int | None = Field(default=None, ge=1)
    test_fraction: float = Field(default=0.2, ge=0, lt=1)
    split_seed: int | None = Field(default=0, ge=0)
    unusable: Literal["refuse", "leave_out"] = "refuse"
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """Let names say how many clients there are, where nothing else does."""
        names = values.get("client_names") if isinstance(values, dict) else None
        return {"num_clients": len(names), **values} if isinstance(names, list | tuple) else values

    @model_validator(mode="after")
    def _named(self) -> Self:
        """Refuse names that are not one for each client, or could be no file's."""
        names = self.client_names
        if names is None:
            return self
        given = f"data.client_names=[{', '.join(names)}]"
        if len(names) != self.num_clients:
            raise UserError(
                given,
                f"there are {self.num_clients} clients",
                f"Write {self.num_clients} names, or data.num_clients={len(names)}",
            )
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(given, f"two clients are called {min(twice)}", "Give each its own name")
        for name in names:
            if not CLIENT_NAME.fullmatch(name) or name == SERVER:
                raise UserError(
                    f"data.client_names: {name!r}",
                    "a client's name is a file name and, in a deployment, stands in its certificate; "
                    f"{SERVER!r} is the server's",
                    CLIENT_NAME_RULE,
                )
        return self

    def check(self, task: Task) -> None:
        """Refuse a source without the columns of a task, or a partition by classes that it has not."""
        source = self.source
        if task.data_form not in source.forms:
            raise UserError(
                f"data.source={source.name} with task={task.name}",
                f"its rows are for {', '.join(sorted(source.forms))}",
                "Give rows of your own with --data FILE, or data.source={name: hub, path: …}",
            )
        self.partition.check(task)
        if self.labels is not None and task.peft_task == "CAUSAL_LM":
            raise UserError(
                f"data.labels with task={task.name}",
                "it has no classes",
                "Leave data.labels out",
            )
        if isinstance(self.labels, tuple) and len({*self.labels}) < max(len(self.labels), 1):
            raise UserError(
                f"data.labels=[{', '.join(self.labels)}]",
                "each class has one name, and there must be some",
                "Name each class once, or write data.labels=union",
            )

    def names(self, count: int | None = None) -> list[str]:
        """Return what the clients are called, padded so that names with numbers sort by them."""
        if self.client_names is not None:
            return list(self.client_names)
        count = self.num_clients if count is None else count
        width = len(str(count - 1))
        return [f"client-{index:0{width}d}" for index in range(count)]
