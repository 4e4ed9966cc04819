"""Who has seen a class counts for it: label counts as weights.

Federated Distillation (Jeong et al., 2018, arXiv 1811.11479) averages what clients think by class, too,
but over their own samples; here the samples are public.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from trillium.ensembles import Ensemble, Opinions


class ClassCounts(Ensemble, name="class_counts"):
    """The probability of each class is averaged by how many examples of it the clients have.

    Clients tell the server how many examples of each class they have, exactly. The result is
    normalised; over- and underrepresented classes are not thereby favoured.
    """

    needs_counts: ClassVar[bool] = True

    def weights(self, opinions: Opinions) -> Tensor:
        """Return the counts, by class."""
        assert opinions.counts is not None
        return opinions.counts[:, None, :]
