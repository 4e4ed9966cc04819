"""Split-FedLLM."""

from trillium.frameworks.split.protocol import Split

__all__ = ["Split"]
