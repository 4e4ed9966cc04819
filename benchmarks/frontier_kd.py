"""Accuracy against bytes: KD-FedLLM's settings and published methods on Banking77.

The arms are in frontier_kd.yaml, the program in frontier.py.

    python benchmarks/frontier_kd.py --smoke
    python benchmarks/frontier_kd.py --tune --workers 2          # the grids behind the settings
    python benchmarks/frontier_kd.py --seeds 0 1 2 --workers 2   # everything
    python benchmarks/frontier_kd.py --tables                    # of what has finished
"""

from frontier import main

if __name__ == "__main__":
    main("frontier_kd")
