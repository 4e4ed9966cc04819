"""apple/pfl-research: its simulated backend with federated averaging, in one process."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

import job

numpy.random.seed(0)
tokens, net = job.tokenizer(), job.model()
clients = [job.rows(f"client-{k}", tokens) for k in range(job.JOB["num_clients"])]
test = job.rows("test", tokens)


class Own(Dataset):  # type: ignore[misc]
    """A client's rows, in the batches of all contestants."""

    turns = 0

    def __init__(self, rows: job.Rows, user: int) -> None:
        super().__init__(raw_data=(), user_id=user)
        self.rows, self.user = rows, user

    def __len__(self) -> int:
        return len(self.rows)

    def iter(self, batch_size: int) -> Iterator[list[torch.Tensor]]:
        """Yield one epoch."""
        Own.turns += 1
        for chunk in job.batches(self.rows, Own.turns * 100003 + self.user):
            yield [*job.collate(chunk)]


def loss(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """Return the loss, as pfl asks its models for it."""
    net.train()
    return job.loss(net, ids, mask, labels)


class Averaging(FederatedAveraging):  # type: ignore[misc]
    """Federated averaging that does not evaluate on clients' rows."""

    def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> Any:
        """Train one client."""
        context = dataclasses.replace(central_context, do_evaluation=False)
        return super().simulate_one_user(model, user_dataset, context)


class Evaluate(TrainingProcessCallback):  # type: ignore[misc]
    """Measures before the first round and after each."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Measure the start."""
        job.evaluate(net, test, 0)
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Measure a round."""
        job.evaluate(net, test, central_iteration + 1)
        return False, Metrics()


if __name__ == "__main__":
    net.loss, net.metrics = loss, lambda *_, **__: {"none": Weighted(0, 1)}  # type: ignore[assignment]
    model = PyTorchModel(
        net,
        local_optimizer_create=lambda parameters, lr: torch.optim.AdamW(
            [p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0
        ),
        central_optimizer=torch.optim.SGD(job.trained(net).values(), lr=1.0),
    )
    users = list(range(len(clients)))
    data = FederatedDataset(
        lambda user: Own(clients[user], user), get_user_sampler("minimize_reuse", users)
    )
    Averaging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job.JOB["rounds"],
            evaluation_frequency=10**6,
            train_cohort_size=job.JOB["clients_per_round"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=job.LR,
            local_batch_size=job.BATCH,
            local_max_grad_norm=1.0,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=64),
        callbacks=[Evaluate()],
    )
