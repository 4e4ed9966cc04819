"""FedLLM."""

from trillium.frameworks.fedllm.protocol import FedLLM

__all__ = ["FedLLM"]
