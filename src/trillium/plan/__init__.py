"""Plan before you spend: what a run will cost, predicted without weights, and held to the ledger."""
