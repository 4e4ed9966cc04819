"""No rows here: all of them are with the nodes of a deployment, whose columns this names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from trillium.data.sources import RawData, Source
from trillium.data.sources.columns import Columns
from trillium.data.sources.decoding import check_encoding
from trillium.errors import UserError


class Nodes(Columns, Source, name="nodes"):
    """Name the columns of the nodes' files, in a deployment whose server has no rows.

    Attributes:
        encoding: encoding of the nodes' csv and JSON files, such as `latin-1`; UTF-8 by default.
    """

    encoding: Annotated[str, AfterValidator(check_encoding)] | None = None

    def load(self, task: str, seed: int) -> RawData:
        """Refuse: there is nothing to load.

        Raises:
            UserError: always.
        """
        raise UserError(
            "data.source=nodes",
            "its rows are with the nodes of a deployment, and here there are none",
            "Write trillium deploy, or data.source={name: files, train: …} with rows of your own",
        )
