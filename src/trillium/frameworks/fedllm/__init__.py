"""FedLLM: what trains of the clients' models is exchanged and averaged.

`protocol` stands on its pieces, these on `settings`, these on the small kinds. Imports `federation`,
`data` and what is below them, and no other framework.
"""

from trillium.frameworks.fedllm.protocol import FedLLM

__all__ = ["FedLLM"]
