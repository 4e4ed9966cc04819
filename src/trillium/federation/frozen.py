"""What the frozen model sees in examples: the features in front of its last layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trillium.federation.side import Side
from trillium.models.heads import features
from trillium.tasks import Example
from trillium.tasks.batches import collate, in_order
from trillium.training.meters import resident_tensors

BATCH = 32  # examples at once; changes memory, not results


@torch.inference_mode()
def frozen_features(side: Side, examples: Sequence[Example]) -> Tensor:
    """Return features `(examples, width)` of a classifier as it was loaded, in order, on the CPU."""
    model = side.model
    module = model.mount(model.state()).eval()
    found = []
    with features(module):
        for chunk in in_order(examples, BATCH):
            batch = collate(chunk, model.tokenizer.pad_token_id, model.device)
            with side.meter.measure(("features", batch.layout), lambda: resident_tensors(module)):
                rows = module(**batch.inputs).logits
                found.append(rows.to(torch.promote_types(model.dtype, torch.float32)).cpu())
    return torch.cat(found)
