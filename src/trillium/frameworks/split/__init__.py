"""Split-FedLLM: the model is cut, and activations cross.

`protocol` stands on its pieces, these on `settings`, these on the small kinds. Imports `federation`,
`data` and what is below them, and no other framework.
"""

from trillium.frameworks.split.protocol import Split

__all__ = ["Split"]
