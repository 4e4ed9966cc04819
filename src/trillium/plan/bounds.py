"""Where a plan cannot be exact: what happens depends on values that nobody knows, or on the round."""

from __future__ import annotations

from trillium.config.experiment import ExperimentConfig
from trillium.federation.cohort import FleetConfig
from trillium.frameworks.fedkseed import FedKSeed
from trillium.frameworks.fedllm.settings import FedLLMSettings
from trillium.frameworks.kd.settings import KDSettings
from trillium.frameworks.split.settings import SplitSettings
from trillium.models.load import LanguageModel
from trillium.plan.models import Depth
from trillium.wire.codecs.adaptive import Adaptive
from trillium.wire.codecs.random_k import RandomK
from trillium.wire.codecs.top_k import TopK


def upper_bound(config: ExperimentConfig) -> bool:
    """Whether a run may take less than is planned; `reasons` says why."""
    return bool(reasons(config))


def reasons(config: ExperimentConfig) -> list[str]:
    """Return why a run may take less than is planned."""
    framework, wires = config.framework, list(config.wires().values())
    found = {
        "rounds without a gain end the run (evaluation.patience)": config.evaluation.patience
        is not None,
        "a direction along which the loss stays the same to the last digit is not told": isinstance(
            framework, FedKSeed
        ),
        "samples that have hardly changed are not sent": isinstance(framework, SplitSettings)
        and framework.delta is not None
        and framework.delta.skip > 0,
    }
    if isinstance(framework, FedLLMSettings):
        is_sparse = any(isinstance(c, TopK | RandomK | Adaptive) for w in wires for c in w.up)
        gradients = framework.upload == "gradient"
        is_lossy = gradients and not all(w.is_lossless("gradients", "up") for w in wires)
        found["a codec may leave a whole tensor as it was"] = is_sparse or is_lossy
        steps = [config.training.local_steps, *(t.local_steps for t in config.tiers.values())]
        first = gradients or framework.mask.name == "rolora" or 1 in steps
        found["the first step of a warm-up moves nothing"] = first and config.training.warmup > 0
        rest = getattr(framework.aggregator, "fold_rest", False)
        found["what the factors cannot hold may have a lower rank"] = rest
        found["LoRA's A does not move before B has"] = config.adapter.name == "lora" and first
    return [why for why, holds in found.items() if holds]


def first_alike(config: ExperimentConfig) -> int:
    """Return the first round that others can be like."""
    framework = config.framework
    return 2 + (framework.local_rounds if isinstance(framework, SplitSettings) else 0)


def keeps(config: ExperimentConfig, model: LanguageModel | Depth) -> bool:
    """Whether what first blocks make of texts is computed in the round that first needs it alone."""
    return config.training.keeps and model.first is not None


def unsteady(config: ExperimentConfig, model: LanguageModel | Depth) -> str:
    """Return why rounds are not alike; empty where all after the first ones are."""
    framework = config.framework
    if config.late:
        return "who is late follows from all rounds before"
    if keeps(config, model) and draws_texts(config):
        return "first blocks compute what a text needs once, and texts are drawn"
    if config.fleet != FleetConfig():
        return "clients are drawn or fail"
    if isinstance(framework, FedKSeed):
        return "directions add up"
    if isinstance(framework, FedLLMSettings) and framework.mask.alternates:
        return "what is trained takes turns"
    if isinstance(framework, KDSettings) and framework.cache_rounds > 1:
        return "soft labels serve several rounds"
    return ""


def draws_texts(config: ExperimentConfig) -> bool:
    """Whether a side does not see all of its texts in every round in which it takes part."""
    some = [config.training.local_steps, *(tier.local_steps for tier in config.tiers.values())]
    by_coins = config.privacy.unit == "example"
    return any(some) or by_coins or getattr(config.framework, "public_per_round", None) is not None


def grows(config: ExperimentConfig) -> bool:
    """Whether messages grow from round to round, until they are as long as they get."""
    return isinstance(config.framework, FedKSeed)
