"""The settings of KD-FedLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trillium.component import Choice
from trillium.frameworks import CLIENT_MODELS, SERVER_MODEL, OwnModels
from trillium.frameworks.kd.alignment.vocabulary import Rule
from trillium.frameworks.kd.ensembles import Average, Ensemble, SizeWeighted
from trillium.frameworks.kd.filters import Filter, NoFilter
from trillium.frameworks.kd.hiddens import Hidden
from trillium.frameworks.kd.hiddens.none import NoHidden
from trillium.frameworks.kd.selections import Random, Selection
from trillium.frameworks.kd.sharpenings import NoSharpening, Sharpening

if TYPE_CHECKING:
    pass


class KDSettings(OwnModels):
    """Exchange of soft labels on a public set.

    Attributes:
        direction: who distils from the teacher: the `server` into its own model, the `client`s into
            theirs, or `both`.
        temperature: softens teacher and student.
        weight: factor of the distillation loss `weight * T^2 * KL(teacher || student)`.
        public_labels: whether the public set's labels may be used; cross-entropy is added then.
        ensemble: how the clients' opinions are weighed.
        average: the teacher is the mean of softened probabilities, or of logits.
        sharpening: what is done to the mean, which is flatter than any opinion in it.
        filter: of which public examples a client says nothing.
        max_entropy: public examples on which the teacher's entropy is above this share of the largest
            possible one are left out of distillation (Selective-FD's server); null keeps all.
        public_per_round: how many public examples a round is about; null is all.
        selection: which ones, where they are not all.
        cache_rounds: rounds that the teacher's label of an example serves; with more than 1, clients
            keep labels, and are asked only about examples whose label has expired.
        hidden: which hidden states of the public examples are exchanged, too, and drawn together.
        resend: clients send a label again only if it is at least so far (total variation distance, 0
            to 1) from the one that they last sent for the same example; null sends all.
        unmatched_tokens: where tokenizers differ, what stands for a token that the other one lacks: the
            longest `opening` of it that there is, or what is at the smallest `edit_distance`.
        distill_epochs: passes over this round's public examples.
    """

    direction: Literal["server", "client", "both"] = "both"
    temperature: float = Field(default=2.0, gt=0)
    weight: float = Field(default=1.0, gt=0)
    public_labels: bool = False
    ensemble: Choice[Ensemble] = SizeWeighted()
    average: Average = "probabilities"
    sharpening: Choice[Sharpening] = NoSharpening()
    filter: Choice[Filter] = NoFilter()
    max_entropy: float | None = Field(default=None, gt=0, le=1)
    public_per_round: int | None = Field(default=None, ge=1)
    selection: Choice[Selection] = Random()
    cache_rounds: int = Field(default=1, ge=1)
    hidden: Choice[Hidden] = NoHidden()
    resend: float | None = Field(default=None, gt=0, le=1)
    unmatched_tokens: Rule = "opening"
    distill_epochs: int = Field(default=1, ge=1)

    needs_public: ClassVar[bool] = True
    mixes_models: ClassVar[bool] = True

    @property
    def ships(self) -> str:
        """The server's model, if it distils, else the clients' own."""
        return CLIENT_MODELS if self.direction == "client" else SERVER_MODEL
