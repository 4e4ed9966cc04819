"""Keep the libraries' own chatter off the screen."""

from __future__ import annotations

import warnings

import transformers


def quiet() -> None:
    """Silence progress bars and notices that are of no use to whoever watches a run."""
    import datasets

    quiet_models()
    datasets.disable_progress_bars()


def quiet_models() -> None:
    """The same, of models alone: who reads no data need not wait for `datasets` to be imported."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # PEFT notices by itself that GPT-2's linear layers are stored transposed, and says so each time.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
