"""Run an experiment and use its model: python examples/python_api.py [KEY=VALUE ...]."""

import sys

import trillium as tr

result = tr.run("run", "rounds=2", *sys.argv[1:])
print(result.table().T)
print(result.ledger.groupby(["client", "direction"])["bytes"].sum())
inputs = result.tokenizer("My card was charged twice.", return_tensors="pt").to(result.model.device)
print("most likely:", result.labels[int(result.model(**inputs).logits.argmax())])
