"""Small decoders that have learnt a little: a tokenizer and weights from some megabytes of text.

For benchmarks that need real, if weak, language models of several architectures and tokenizers and
cannot download any. A minute of one processor core each; they are no good for anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
BLOCK, BATCH, LR = 128, 16, 4e-3  # tokens of a training text, texts of a step, highest rate


def documents(path: Path, num_bytes: int) -> list[str]:
    """Return the documents in the first so many bytes of a compressed text, blank lines between."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        text = reader.read(num_bytes).decode(errors="ignore")
    return text.split("\n\n")[:-1]


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of so many tokens, such as GPT-2's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=END, eos_token=END)


def pretrain(
    kind: str, sizes: dict[str, Any], tokenizer: Any, texts: list[str], num_steps: int, folder: Path
) -> float:
    """Train a decoder from random weights, write it in Hugging Face's format, return its last loss.

    Args:
        kind: its architecture, as `transformers` calls it.
        sizes: what its configuration says beside the vocabulary.
        tokenizer: written beside it.
        texts: to learn from, in their order; the steps end with the texts at the latest.
        num_steps: of AdamW; the rate rises and falls.
    """
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ends, **sizes)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, num_steps, pct_start=0.15)
    loss = 0.0
    for _, ids in zip(range(num_steps), _batches(tokenizer, texts), strict=False):
        found = model(input_ids=ids, labels=ids).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        course.step()
        loss += 0.05 * (float(found.detach()) - loss) if loss else float(found.detach())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


def _batches(tokenizer: Any, texts: list[str]) -> Iterator[torch.Tensor]:
    """Yield token ids `(BATCH, BLOCK)` of the texts, one after the other."""
    held: list[int] = []
    for text in texts:
        held += [tokenizer.bos_token_id]
        held += tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id != tokenizer.bos_token_id:
            held += [tokenizer.eos_token_id]
        while len(held) >= BATCH * BLOCK:
            yield torch.tensor(held[: BATCH * BLOCK]).view(BATCH, BLOCK)
            held = held[BATCH * BLOCK :]
