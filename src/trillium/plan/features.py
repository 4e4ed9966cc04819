"""Features of the frozen model on paper, which heads in closed form look at."""

from __future__ import annotations

import torch

from trillium.federation.side import Side
from trillium.models.heads import features
from trillium.tasks import Example
from trillium.tasks.batches import collate
from trillium.training.meters import resident_tensors


def run_features(side: Side, examples: list[Example]) -> None:
    """Compute the features of a batch, as a head in closed form does."""
    model = side.model
    module = model.mount(model.state()).eval()
    batch = collate(examples, model.tokenizer.pad_token_id, model.device)
    with (
        torch.inference_mode(),
        features(module),
        side.meter.measure(("features", batch.layout), lambda: resident_tensors(module)),
    ):
        module(**batch.inputs)
