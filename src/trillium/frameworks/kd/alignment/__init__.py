"""Soft labels between language models whose tokenizers differ.

Logits on one text are of different tokens, at different places. Two things bring them together: a map
of vocabularies, `vocabulary.py`, and an alignment of the rows, `sequence.py`; both look at the bytes
that tokens stand for, `pieces.py`. `labels.py` translates soft labels with them.

After FuseLLM (Wan et al., 2024, arXiv 2401.10491) and FedMKT (Fan et al., 2024, arXiv 2406.02224).
"""
