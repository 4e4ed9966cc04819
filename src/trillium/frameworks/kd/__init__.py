"""KD-FedLLM: soft labels on a public set are exchanged and distilled.

`protocol` stands on its pieces, these on `settings`, these on the small kinds. Imports `federation`,
`data` and what is below them, and no other framework.
"""

from trillium.frameworks.kd.protocol import KD

__all__ = ["KD"]
