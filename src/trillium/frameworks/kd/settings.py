"""The settings of KD-FedLLM."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from trillium.component import Choice
from trillium.frameworks import CLIENT_MODELS, SERVER_MODEL, OwnModels
from trillium.frameworks.kd.ensembles import Average, Ensemble, SizeWeighted
from trillium.frameworks.kd.sharpenings import NoSharpening, Sharpening


class KDSettings(OwnModels):
    """Exchange of soft labels on a public set.

    Attributes:
        direction: who distils from the teacher: the `server` into its own model, the `client`s into
            theirs, or `both`.
        temperature: softens teacher and student.
        weight: factor of the distillation loss `weight * T^2 * KL(teacher || student)`.
        public_labels: whether the public set's labels may be used; cross-entropy is added then.
        ensemble: how the clients' predictions are weighted.
        average: the teacher is the mean of softened probabilities, or of logits.
        sharpening: what is done to the mean, which is flatter than any prediction in it.
        public_per_round: how many public examples a round uses, drawn anew each time; null uses
            all.
        cache_rounds: rounds that the teacher's label of an example serves; with more than 1, clients
            keep labels, and are asked only about examples whose label has expired.
        distill_epochs: passes over this round's public examples.
    """

    direction: Literal["server", "client", "both"] = "both"
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    public_labels: bool = False
    ensemble: Choice[Ensemble] = SizeWeighted()
    average: Average = "probabilities"
    sharpening: Choice[Sharpening] = NoSharpening()
    public_per_round: int | None = Field(default=None, ge=1)
    cache_rounds: int = Field(default=1, ge=1)
    distill_epochs: int = Field(default=1, ge=1)

    mixes_models: ClassVar[bool] = True

    @property
    def needs_public(self) -> bool:
        """To predict on."""
        return True

    @property
    def hides(self) -> bool:
        """An ensemble may draw noise."""
        return self.ensemble.draws

    @property
    def ships(self) -> str:
        """The server's model, if it distils, else the clients' own."""
        return CLIENT_MODELS if self.direction == "client" else SERVER_MODEL
