"""The data of a recipe as a plan sees it: read, divided and tokenised as for a run, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trillium.config.experiment import ExperimentConfig, Tree
from trillium.config.texts import Texts as Tokenised
from trillium.config.texts import in_model_order
from trillium.data.federated import FederatedData
from trillium.data.load import load_data
from trillium.data.sources.builtin import Builtin
from trillium.data.sources.files import Files
from trillium.errors import UserError
from trillium.plan.data import Texts


@dataclass
class Reader:
    """Reads the data that settings name, once for all that share them."""

    _read: dict[str, FederatedData] = field(default_factory=dict)
    _tokenised: dict[str, Tokenised] = field(default_factory=dict)

    def read(self, tree: Tree, config: ExperimentConfig) -> tuple[ExperimentConfig, Texts] | str:
        """Return the configuration as its data complete it, and the data; or why they are not read."""
        if why := _unread(tree, config):
            return why
        key = repr((config.data, config.task, config.seed, config.public_size, config.model))
        try:
            if key not in self._read:
                form = config.task.data_form
                data = load_data(config.data, form, config.seed, config.public_size)
                self._read[key] = in_model_order(config, data)
            return self._texts(config, key)
        except UserError as error:
            return f"{error.given}: {error.why}"

    def _texts(self, config: ExperimentConfig, key: str) -> tuple[ExperimentConfig, Texts]:
        data = self._read[key]
        known = self._tokenised.get(key)
        texts = Tokenised(config, data.labels)
        if known is not None:  # the same rows in the same tokens, cut perhaps otherwise
            texts = Tokenised(config, data.labels, known._inputs, known._whole)
        self._tokenised[key] = texts
        config, data = texts.fit(data), texts.counted(data)
        model = config.of(None).model
        public, tokenizer = texts.all_examples(model, data.public), texts.inputs(model).tokenizer
        found = Texts(
            clients={name: texts.examples(model, rows) for name, rows in data.clients.items()},
            public=public,
            num_classes=len(data.labels),
            rows=data.public,
            public_of=dict.fromkeys(data.clients, public) if config.framework.needs_public else {},
            test=texts.examples(model, data.test),
            held={name: texts.examples(model, rows) for name, rows in data.held.items()},
            tokenizers=dict.fromkeys((None, *data.clients), tokenizer),
        )
        return config, found


def _unread(tree: Mapping[str, Any], config: ExperimentConfig) -> str:
    """Return why data are not even looked at; nothing where they are."""
    data = tree.get("data")
    if not (isinstance(data, Mapping) and "source" in data):
        return "no data are named"
    if not isinstance(config.data.source, Builtin | Files):
        return f"data.source={config.data.source.name} is not on this machine"
    if config.has_other_models:
        return "clients have models of their own"
    if config.data.public.is_written and config.framework.needs_public:
        return "the server has public texts of its own"
    return ""
