"""How long to train: three choices instead of twenty fields.

The same values stand in `configs/quick.yaml` and `configs/careful.yaml` for the command line (a test holds both to it);
they are repeated here because an installed package has no `configs/`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..training.config import VALIDATE_EVERY

QUICK: Mapping[str, Any] = MappingProxyType(
    {"max_train_steps": 100, "validation_steps": 100, "num_validation_images": 1}
)
CAREFUL: Mapping[str, Any] = MappingProxyType(
    {"max_train_steps": 600, "lr_scheduler": "cosine", "lr_warmup_steps": 20, "validation_steps": 150}
)
PAGE: Mapping[str, Any] = MappingProxyType(
    {"center_crop": True, "validate_every_n_steps": VALIDATE_EVERY, "keep_best": True}
)
"""What the page takes unlike the command line, whatever the preset. It shows the crops: what it shows is trained."""
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"quick": QUICK, "balanced": MappingProxyType({}), "careful": CAREFUL}
)
"""What each preset changes in `TrainConfig`; "balanced" is its defaults."""

MEANING: Mapping[str, str] = MappingProxyType(
    {
        "quick": "shows whether pictures and class word are right",
        "balanced": "good for most subjects",
        "careful": "for the last details",
    }
)
