"""Time on paper: how long messages and work take over links and devices, of plans and of ledgers."""
