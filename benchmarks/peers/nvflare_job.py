"""NVFlare's FedAvg recipe in its simulator.

nvflare_job.py THREADS
"""

import os
import sys
import tempfile
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

import job
from nvflare_client import Exchanged

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    recipe = FedAvgRecipe(
        name="race",
        min_clients=job.JOB["num_clients"],
        num_rounds=job.JOB["rounds"],
        model=Exchanged(),
        train_script="nvflare_client.py",
    )
    with tempfile.TemporaryDirectory() as root:
        place = SimEnv(
            num_clients=job.JOB["num_clients"], num_threads=int(sys.argv[1]), workspace_root=root
        )
        run = recipe.execute(place)
        print("status", run.get_status(), "result", run.get_result())
