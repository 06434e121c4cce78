# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""WinCLIP's map: the window scores of anomalib's own model.

Letters: B images, H W map, C embedding.

Reference:
    Jeong et al., https://arxiv.org/abs/2303.14814
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.base import CLIP_MEAN, CLIP_STD, Localizer
from anomalib_clipsam.clip.prompts import PromptEnsemble
from anomalib_clipsam.clip.taps import Taps
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserImportError, UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP


class WinClipLocalizer(Localizer):
    """Window scores of anomalib's own ``WinClipModel``, which brings its own CLIP (ViT-B-16-plus-240).

    Args:
        ensemble (PromptEnsemble): Must be the default: ``WinClipModel`` makes its own prompts.

    Raises:
        ImportError: If the installed open_clip is newer than anomalib's model works with.
        ValueError: If the ensemble is not the default.
    """

    own_weights = "anomalib's WinClipModel"
    unit_text = False  # compared by the cosine
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, ensemble: PromptEnsemble) -> None:
        super().__init__(ensemble)
        if ensemble != PromptEnsemble():
            msg = "Localizer 'winclip' makes its own prompts. Leave `prompts` out or choose localizer 'dense'."
            raise UserValueError(msg)
        from anomalib.models.image.winclip.torch_model import WinClipModel

        self.winclip = WinClipModel(apply_transform=False)
        if self.winclip.clip.visual.transformer.resblocks[0].attn.batch_first:
            msg = (
                "Localizer 'winclip' calls anomalib's WinClipModel, which gives wrong scores with this open_clip. "
                "Run: pip install 'open_clip_torch>=2.24,<2.26.1'"
            )
            raise UserImportError(msg)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.image_size = self.winclip.clip.visual.image_size[0]
        self.text_size = self.winclip.clip.text_projection.shape[1]

    def _encode_text(self, class_name: str) -> torch.Tensor:
        self.winclip.setup(class_name)
        return self.winclip.text_embeddings

    def _use_text(self, text: torch.Tensor) -> None:
        device = self.winclip.clip.text_projection.device
        self.winclip._text_embeddings = text.to(device)  # noqa: SLF001  # the setter of anomalib's buffer

    @classmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> WinClipLocalizer:
        """Build it: it brings its own CLIP, with its own image size. See :meth:`Localizer.build`."""
        del image_size, clip, adapters
        return cls(ensemble)

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        size = (self.image_size, self.image_size)
        resized = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        with full_precision(image.device.type):  # its comparisons with the text are inside
            prediction = self.winclip((resized - self.mean) / self.std)
            # WinCLIP's own few-shot compares these patches too; its forward pass does not give them away.
            patches = (
                self.winclip.encode_image((resized - self.mean) / self.std)[2] if tapped else None
            )  # (B, h * w, D)
        anomaly_map = F.interpolate(prediction.anomaly_map.unsqueeze(1), image.shape[-2:], mode="bilinear")
        grids = (patches.transpose(1, 2).unflatten(2, self.winclip.grid_size),) if tapped else ()
        return anomaly_map.squeeze(1).clamp(0, 1), prediction.pred_score.clamp(0, 1), grids
