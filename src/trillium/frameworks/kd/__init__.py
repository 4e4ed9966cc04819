"""KD-FedLLM."""

from trillium.frameworks.kd.protocol import KD

__all__ = ["KD"]
