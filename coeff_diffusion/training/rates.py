"""How fast words are learned where the settings leave that to the base."""

from dataclasses import replace
from typing import Any, NamedTuple

from ..families.load import EMBEDDED, base_name
from .config import TrainConfig


class WordRates(NamedTuple):
    """The learning rates of the trigger's embedding and of what the stages read at the trigger."""

    token: float
    stage_token: float


OF_EMBEDDED = WordRates(4e-2, 1e-1)  # the nearest to the subject in as many steps, see docs/fidelity.md
OF_OTHERS = WordRates(1e-3, 3e-2)  # embeddings of CLIP have values near 0.03: more tears words out of the language


def usual_word_rates(base: str) -> WordRates:
    """The rates of a base that is called so (see `base_name`)."""
    return OF_EMBEDDED if base == EMBEDDED else OF_OTHERS


def with_word_rates(config: TrainConfig, pipe: Any) -> TrainConfig:
    """The settings with the rates that they leave open.

    Args:
        pipe: the base that is taught.
    """
    usual = usual_word_rates(base_name(pipe))
    token, stage_token = config.token_learning_rate, config.stage_token_learning_rate
    return replace(
        config,
        token_learning_rate=usual.token if token is None else token,
        stage_token_learning_rate=usual.stage_token if stage_token is None else stage_token,
    )
