"""Accuracy against bytes: FedLLM's settings and their published relatives on Banking77.

The arms are in frontier_fedllm.yaml, the program in frontier.py.

    python benchmarks/frontier_fedllm.py --smoke
    python benchmarks/frontier_fedllm.py --tune --workers 2          # the grids behind the settings
    python benchmarks/frontier_fedllm.py --seeds 0 1 2 --workers 2   # everything
    python benchmarks/frontier_fedllm.py --tables                    # of what has finished
"""

from frontier import main

if __name__ == "__main__":
    main("frontier_fedllm")
