"""The variants of the frameworks: one list for contracts, plans, engines and resume.

Each is a name that begins with its framework, and the words of a tiny federation (`tiny.federation`).
A framework that is registered and stands in no line here has one of its own, with its defaults. A
table's users choose what they run with `cases`: which variants apply, and which of them every run of
the tests is worth; the others are `slow`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest

from trillium.component import known
from trillium.frameworks import Framework


@dataclass(frozen=True)
class Variant:
    """The words of a tiny federation, the framework's among them.

    Attributes:
        words: as on the command line.
        model, task: of `tiny.federation`.
    """

    words: tuple[str, ...]
    model: str = "gpt2"
    task: str = "classification"

    @property
    def framework(self) -> str:
        """The name of its framework."""
        return self.words[0].removeprefix("framework=").removeprefix("{name: ").split(",")[0]

    @property
    def asks_all(self) -> bool:
        """Whether three clients are there, and each is asked in every round."""
        others = ("fleet", "data.num_clients")
        silent = self.framework in ("zero_shot", "centralised")
        return not (silent or self.masks) and not any(w.startswith(others) for w in self.words)

    @property
    def masks(self) -> bool:
        """Whether sums are masked: nobody foresees what clients answer, and two cannot do alone."""
        return any(word.startswith("sums=") for word in self.words)

    @property
    def is_timed(self) -> bool:
        """Whether it has a clock, by which clients may be late; in a deployment time is another."""
        return any(word.startswith("plan.") for word in self.words)

    @property
    def ships(self) -> bool:
        """Whether the server's model becomes another than it was at the start."""
        silent = ("zero_shot", "local_only")
        return self.framework not in silent and "framework.direction=client" not in self.words

    @property
    def repeats(self) -> bool:
        """Whether the same seed gives the same bytes: noise and masks are nobody's to foresee."""
        return not self.masks and not any("defence" in word for word in self.words)

    @property
    def dropout(self) -> tuple[str, ...]:
        """The words for dropout, before its own: what is kept or sent as changes may not be random."""
        text = " ".join(self.words)
        once = "train: server" in text and "cache: false" not in text
        if (
            once or KEPT in text or "delta" in text or self.framework in ("fedkseed", "zero_shot")
        ):  # which have none
            return ()
        adapters = () if "adapter=" in text else ("adapter.dropout=0.2",)
        return ("model.dropout=0.2", *adapters)

    @property
    def fewest(self) -> str:
        """The word for as few rounds as there can be."""
        if self.framework == "zero_shot":
            return "evaluation.batch_tokens=64"  # there are none
        return "rounds=2" if "local_rounds" in " ".join(self.words) else "rounds=1"


KEPT = "training.cache_frozen=true"
INT8 = "wire={up: [int8], down: [cast]}"
FAILURES = "fleet={failure_rate: 0.4, min_replies: 1}"
COHORT = "fleet.clients_per_round=2"
RANKS = "tiers={small: {clients: [client-0], rank: 1}}"
CUTS = "tiers={small: {clients: [client-0], cut: 1}}"
TOP = "{name: top_classes, k: 2}"
# A place for each client, one of which is slow; so a simulation has a clock.
PLACES = (
    "tiers={slow: {clients: [client-1]}}",
    "plan.client={device: {flops: 1e6}, link: {up: 1e6, down: 2e6, latency: 0.01}}",
    "plan.tiers={slow: {device: {flops: 2e5}, link: {up: 1e5, down: 1e5}}}",
    "plan.server={device: {flops: 1e8}, link: {up: 4e6, down: 4e6}}",
)
FIRST = ("fleet={clients_per_round: 2, over_sample: 1.5}", "rounds=5", *PLACES)
MEASURED = ("evaluation.where=clients", "rounds=3", "training.batch_size=4")

FEDLLM: dict[str, tuple[str, ...]] = {
    "": (),
    "server adam": ("framework.server_optimizer={name: adam, lr: 0.1}",),
    "full": ("adapter=full", INT8),
    "parameters of a cohort": ("framework.upload=parameters", COHORT, "rounds=3"),
    "gradient": ("framework.upload=gradient", "rounds=3", INT8),
    "change, turns": ("framework={download: change, mask: rolora}", "rounds=3", INT8),
    "change, cohort": ("framework.download=change", COHORT, "wire={up: [sign], down: [int4]}"),
    "everything coded": (
        "framework={download: change, aggregator: svd}",
        "head=class_means",
        "wire={up: [hadamard, sign], down: [int4, zstd]}",
        "tiers={small: {clients: ['*-1'], rank: 2, local_steps: 1}}",
    ),
    "scaffold": ("framework={drift: scaffold, mask: ffa}",),
    "ia3": ("adapter={name: ia3}", "wire={up: [int4]}"),
    "local": ("framework.local=[lora_B, head]",),
    "measured by clients": (*MEASURED, COHORT),
    "finetuned": (*MEASURED, "finetune={local_steps: 3, tensors: [head, lora_B]}"),
    "stack, measured by clients": ("framework.aggregator=stack", *MEASURED),
    "local, measured by clients": ("framework.local=[head]", *MEASURED),
    "failures": (FAILURES, "rounds=4"),
    "tiers": (
        "tiers={small: {clients: [client-0], rank: 1, local_steps: 2}}",
        "framework.aggregator=hetlora",
    ),
    "layers": (
        "framework.aggregator=svd",
        "tiers={small: {clients: [client-2], rank: 1, layers: [1, 2]}}",
    ),
    # What is folded into the base.
    "stack": ("framework.aggregator=stack", "rounds=3"),
    "stack of a cohort": ("framework.aggregator=stack", COHORT, "rounds=5", INT8, RANKS),
    "stack, failures": ("framework.aggregator=stack", FAILURES, "rounds=5"),
    "fedex": ("framework.aggregator=fedex", "rounds=3"),
    "fedex, one step": ("framework.aggregator=fedex", "rounds=3", "training.local_steps=1"),
    "fedex of rank 2": ("framework.aggregator={name: fedex, rank: 2}",),
    "rest of svd": ("framework.aggregator={name: svd, fold_rest: true}", "rounds=3"),
    "rest of svd, ranks": (
        *("framework.aggregator={name: svd, fold_rest: true}", RANKS, "training.local_steps=1"),
    ),
    "checkpoints": ("training.gradient_checkpointing=true", "adapter.dropout=0.2"),
    "checkpoints, gradient": ("framework.upload=gradient", "training.gradient_checkpointing=true"),
    "micro-batches": ("training.micro_batch_size=3", "framework.drift=scaffold"),
    "micro-batches, gradient": ("framework.upload=gradient", "training.micro_batch_size=3"),
    "autocast": ("model.dtype=float32", "training.autocast=bfloat16"),
    "kept": ("adapter.layers=[2]", KEPT, "rounds=3"),
    "kept, int8 of a cohort": (
        *("adapter.layers=[1, 2]", KEPT, "training.cache_precision=int8", COHORT, "rounds=3"),
        *("head=ridge", "training.local_steps=1"),
    ),
    "svd": ("framework.aggregator=svd", "training.local_steps=1", "rounds=3"),
    "rolora": ("framework={aggregator: fedex, mask: rolora}", "rounds=3"),
    "first of more": FIRST,
    "buffered": (
        *("framework.asynchronous.buffer=2", "data.num_clients=4", "rounds=5", *PLACES),
        "training.local_steps=2",
    ),
    "buffered, failures": (
        "framework={drift: prox, asynchronous: {buffer: 2, damping: 1}}",
        "fleet={clients_per_round: 3, failure_rate: 0.2, min_replies: 1, deadline_seconds: 15}",
        *("data.num_clients=4", "rounds=6", INT8, *PLACES, "training.local_steps=2"),
    ),
    "first, folds, deadline": (
        *("framework.aggregator=stack", "rounds=4", *PLACES),
        "data.num_clients=5",
        "fleet={take: 3, min_replies: 1, deadline_seconds: 6, failure_rate: 0.2}",
    ),
}
FEDKSEED: dict[str, tuple[str, ...]] = {
    "": ("training.local_steps=3",),
    "micro-batches": ("training.micro_batch_size=3",),
    "failures": ("rounds=4", FAILURES),
    "few seeds, all parameters": ("adapter=full", "framework.num_seeds=12", "rounds=3"),
    "frozen factors": ("training.lr_factors={lora_A: 0}", "framework.num_seeds=64"),
}
KD: dict[str, tuple[str, ...]] = {
    "": (),
    "server": ("framework={direction: server, ensemble: class_counts}",),
    "client": ("framework.direction=client",),
    "measured by clients": ("evaluation.where=both",),
    "client, class means": ("framework.direction=client", "head=class_means"),
    "cohort": (COHORT,),
    "cached": ("framework={cache_rounds: 2, public_per_round: 7}", "rounds=4"),
    "cached, confident": (
        "framework={cache_rounds: 2, public_per_round: 7, ensemble: confidence, sharpening: power}",
        f"wire={{up: [{TOP}], down: [{TOP}]}}",
    ),
    "cached, cohort": (
        *("framework={cache_rounds: 2, public_per_round: 8}", f"wire={{down: [{TOP}]}}", COHORT),
    ),
    "top classes": (f"wire={{up: [{TOP}], down: [log_probabilities]}}",),
    "labels, int8": ("framework={public_labels: true, distill_epochs: 2}", INT8),
    "other models": (
        "tiers={wide: {clients: [client-0], adapter: {r: 5}}, slow: {clients: [client-1]}}",
        "server.adapter.r=2",
        "head=ridge",
    ),
    "checkpoints": ("training.gradient_checkpointing=true",),
    "micro-batches": ("training.micro_batch_size=3",),
    "autocast": (
        "model.dtype=float32",
        "training.autocast=bfloat16",
        "training.micro_batch_size=3",
    ),
    "kept": ("framework.direction=both", "adapter.layers=[2]", KEPT, "rounds=3"),
    "kept, cached": (
        *("framework={cache_rounds: 2, public_per_round: 7}", "adapter.layers=[2]", KEPT),
        *("training.cache_precision=bfloat16", "rounds=4"),
    ),
    "words": ("data.public={name: words, longest: 9, shortest: 3}",),
    "first of more": FIRST,
}
SPLIT: dict[str, tuple[str, ...]] = {
    "": (),
    "u": ("framework.shape=u",),
    "measured by clients": ("evaluation.where=both", INT8),
    "u, measured by clients": ("framework.shape=u", *MEASURED),
    "u, both, int8": ("framework={shape: u, train: both}", "wire={up: [int8], down: [int8]}"),
    "v1": ("framework.mode=splitfed_v1",),
    "v1, u": ("framework={mode: splitfed_v1, shape: u, tail: 2}",),
    "v1 of a cohort": ("framework.mode=splitfed_v1", COHORT),
    "v2": ("framework.mode=splitfed_v2",),
    "v2, u": ("framework={mode: splitfed_v2, shape: u}",),
    "v2 of the server": ("framework={mode: splitfed_v2, train: server, cache: false}",),
    "relay": ("framework.mode=relay", "training.local_steps=2"),
    # The client's blocks are frozen: what they give crosses once.
    "cache": ("framework={train: server}",),
    "cache, int4": (
        "framework={train: server}",
        "head=class_means",
        "wire={up: [int4]}",
    ),
    "cache of a cohort": ("framework={train: server}", COHORT, "rounds=3"),
    "cache, failures": ("framework={train: server}", FAILURES, "rounds=3"),
    "cache, cuts": ("framework={train: server, cut: 2}", CUTS),
    "kept u": ("framework={shape: u, train: server}",),
    "kept u, failures": ("framework={shape: u, train: server}", FAILURES, "rounds=4", INT8),
    "kept u, relay": ("framework={shape: u, train: server, mode: relay, tail: 2}",),
    "kept u, v2 of a cohort": (
        *("framework={shape: u, train: server, mode: splitfed_v2}", "wire={up: [int4]}", COHORT),
    ),
    "kept u, cuts": ("framework={shape: u, train: server, cut: 2}", CUTS),
    "kept u, local rounds": ("framework={shape: u, train: server, local_rounds: 1}", "rounds=3"),
    "kept v1": ("framework={mode: splitfed_v1, train: server}",),
    "kept v1 of a cohort": ("framework={mode: splitfed_v1, train: server}", COHORT),
    "kept v2, cuts": ("framework={mode: splitfed_v2, train: server, cut: 2}", CUTS),
    "local rounds": ("framework={train: server, local_rounds: 1}", "rounds=3"),
    # What is sent, and when.
    "delta": ("framework={delta: {feedback: 0.5}}", "wire={up: [int4], down: [int8]}"),
    "delta, skips": ("framework={delta: {skip: 0.3}}", "wire={up: [int4], down: [int8]}"),
    "ahead": ("framework.staleness=1",),
    "ahead, u": ("framework={staleness: 1, shape: u, cut: 2}", "data.num_clients=2"),
    "ahead, turns": ("framework={staleness: 1, mode: splitfed_v2}", "data.num_clients=2"),
    "ahead, one batch": ("framework={staleness: 1, train: client}", "training.local_steps=1"),
    "ahead, relay": (
        "framework={staleness: 1, mode: relay, shape: u, train: server, cache: false}",
    ),
    "ahead, full": ("framework={staleness: 1, cut: 2}", "adapter=full"),
    "checkpoints": ("training.gradient_checkpointing=true", "framework.mode=splitfed_v1"),
    "checkpoints, u": ("training.gradient_checkpointing=true", "framework={shape: u, tail: 2}"),
    "checkpoints, ahead": ("training.gradient_checkpointing=true", "framework.staleness=1"),
    "checkpoints, cache": ("training.gradient_checkpointing=true", "framework.train=server"),
    "checkpoints, local rounds": (
        "training.gradient_checkpointing=true",
        *("framework={train: server, local_rounds: 1}", "rounds=3"),
    ),
    "micro-batches": ("training.micro_batch_size=3",),
    "micro-batches, u": (
        *("training.micro_batch_size=3", "framework={shape: u, tail: 2}"),
        "training.gradient_checkpointing=true",
    ),
    "micro-batches, ahead": ("training.micro_batch_size=3", "framework.staleness=1"),
    "micro-batches, cache": ("training.micro_batch_size=3", "framework.train=server"),
    "micro-batches, turns": (
        "training.micro_batch_size=3",
        "framework={mode: splitfed_v2, train: server, cache: false}",
    ),
    "autocast": ("model.dtype=float32", "training.autocast=bfloat16"),
    "autocast, u": (
        "model.dtype=float32",
        "training.autocast=bfloat16",
        "framework={shape: u, tail: 2}",
    ),
    "autocast, checkpoints": (
        *("model.dtype=float32", "training.autocast=bfloat16"),
        *("training.gradient_checkpointing=true", "training.micro_batch_size=3"),
    ),
    "autocast, local rounds": (
        *("model.dtype=float32", "training.autocast=bfloat16"),
        *("framework={train: server, local_rounds: 1}", "rounds=3"),
    ),
    "dropout": ("framework={train: server, defence: gaussian}", "model.dropout=0.1"),
}
BASELINES: dict[str, tuple[str, ...]] = {
    "zero_shot": ("framework=zero_shot",),
    "centralised": ("framework=centralised",),
    "local_only": ("framework=local_only",),
    "centralised kept": ("framework=centralised", "adapter.layers=[2]", KEPT),
    "local_only kept": ("framework=local_only", "adapter.layers=[2]", KEPT, "rounds=3"),
    "local_only class means": ("framework=local_only", "head=class_means"),
    "local_only ridge of a cohort": ("framework=local_only", "head=ridge", COHORT),
}
EQUAL = "framework.weights=equal"
MASKED: dict[str, tuple[str, ...]] = {
    "fedllm masked": ("framework=fedllm", EQUAL, "sums=masked", "rounds=3"),
    "fedllm masked, peers of a cohort": (
        *(
            "framework={name: fedllm, mask: rolora, weights: equal}",
            "sums={name: masked, peers: 2}",
        ),
        *("data.num_clients=7", "fleet.clients_per_round=5", "rounds=4"),
    ),
    "fedllm masked, failures": (
        *("framework=fedllm", EQUAL, "sums={name: masked, bits: 20}", "data.num_clients=5"),
        *("fleet={failure_rate: 0.2, min_replies: 3}", "rounds=4", "training.batch_size=4"),
    ),
    "fedllm masked, class sums": (
        *("framework=fedllm", EQUAL, "sums=masked", "head=class_sums", "wire.down=[int8]"),
        "framework.upload=gradient",
    ),
    "kd masked": (
        "framework={name: kd, ensemble: mean}",
        "sums=masked",
        "framework.direction=both",
    ),
    "kd masked, votes": (
        *("framework={name: kd, ensemble: vote}", "sums=masked", "data.num_clients=5"),
        *("fleet={failure_rate: 0.2, min_replies: 3}", "rounds=4"),
    ),
    "kd masked, cached logits": (
        "framework={name: kd, ensemble: mean, average: logits, cache_rounds: 2, public_per_round: 7}",
        *("sums={name: masked, bits: 12}", "rounds=4", "head=class_sums"),
    ),
    "fedkseed masked": ("framework=fedkseed", "sums={name: masked, bits: 16}", "rounds=3"),
}
HEADS: dict[str, tuple[str, ...]] = {
    "class means": ("head=class_means", "wire={up: [{name: cast, kinds: [statistics]}]}"),
    "ridge": ("head=ridge",),
    "projected": ("head={name: ridge, project: 5}",),
    "class sums": ("head=class_sums",),
}
PAIRS: dict[str, tuple[str, ...]] = {
    "fedllm preference": ("framework=fedllm",),
    "fedllm preference, parts": (
        *("framework.upload=gradient", "training.micro_batch_size=3"),
        "training.gradient_checkpointing=true",
    ),
    "split preference": ("framework=split",),
    "split preference, u": (
        *("framework={name: split, shape: u, tail: 2}", "wire={up: [int8], down: [int8]}"),
        "training.micro_batch_size=3",
    ),
    "split preference of the server": ("framework={name: split, train: server, cache: false}",),
    "split preference, ahead": ("framework={name: split, staleness: 1}",),
}
MODELS = (
    *(("llama", "causal_lm"), ("bert", "classification"), ("gpt2", "causal_lm")),
    *(("bert", "multi_label"), ("bert", "regression"), ("bert", "token_classification")),
)


def _listed() -> dict[str, Variant]:
    tables = {"fedllm": FEDLLM, "fedkseed": FEDKSEED, "kd": KD, "split": SPLIT}
    found = {
        f"{framework} {name}".strip(): Variant((f"framework={framework}", *words))
        for framework, table in tables.items()
        for name, words in table.items()
    }
    found |= {name: Variant(words) for name, words in {**BASELINES, **MASKED}.items()}
    for name, words in HEADS.items():
        found[f"fedllm head, {name}"] = Variant(("framework=fedllm", *words), model="bert")
    for framework in ("fedllm", "kd", "split"):
        for model, task in MODELS:
            few = (f"framework={framework}", "rounds=1", "data.num_clients=2")
            found[f"{framework} {model}, {task}"] = Variant(few, model, task)
    for name, words in PAIRS.items():
        found[name] = Variant(words, task="preference")
    return found


_LISTED = _listed()
_OTHERS = {n: Variant((f"framework={n}",)) for n in known(Framework) if n not in _LISTED}
VARIANTS: dict[str, Variant] = {**_LISTED, **_OTHERS}


def cases(
    fast: Collection[str],
    where: Callable[[Variant], bool] = lambda variant: True,
    rest: pytest.MarkDecorator = pytest.mark.slow,
    every: int = 1,
) -> list[Any]:
    """Return the variants of a test by name, to parametrise it with.

    Args:
        fast: the names of those that every run of the tests runs, frameworks that stand in no table
            among them.
        where: which variants the test applies to.
        rest: what the others are.
        every: of the others, every so many; those between are a `drill`.
    """
    chosen = {name: variant for name, variant in VARIANTS.items() if where(variant)}
    unknown = set(fast) - chosen.keys()
    assert not unknown, f"there is no variant {unknown} here"
    quick = {*fast, *_OTHERS}
    others = [name for name in chosen if name not in quick]
    marks = {name: rest if n % every == 0 else pytest.mark.drill for n, name in enumerate(others)}
    return [
        pytest.param(variant, id=name, marks=marks.get(name, ()))
        for name, variant in chosen.items()
    ]


def slow_but(fast: Collection[tuple[Any, ...]], rest: Collection[tuple[Any, ...]]) -> list[Any]:
    """Return the cases of a test, of which every run of the tests runs the fast ones alone."""
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in rest if case not in fast]
    return [*fast, *slow]
