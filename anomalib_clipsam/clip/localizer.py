# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Localizers: from an image to CLIP's anomaly map S_a and an image score, by text alone.

Which map the paper uses is unknown. Three stand behind one interface:

- :class:`DenseLocalizer` needs nothing but CLIP: value-value attention in the last blocks (after CLIP Surgery and
  AnoVL).
- :class:`AprilGanLocalizer` adds one trained linear adapter per tapped block (APRIL-GAN).
- :class:`WinClipLocalizer` calls anomalib's own ``WinClipModel``.

Letters: B images, H W map, h w patch grid, L = 1 + h * w tokens (class token first), D width, C embedding, T taps.

References:
    - APRIL-GAN: Chen et al., https://arxiv.org/abs/2305.17382
    - CLIP Surgery: Li et al., https://arxiv.org/abs/2304.05653
    - AnoVL: Deng et al., https://arxiv.org/abs/2308.15939
    - WinCLIP: Jeong et al., https://arxiv.org/abs/2303.14814
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.build import attend, encode_ensemble, feed_forward, project, run_block
from anomalib_clipsam.clip.prompts import PromptEnsemble
from anomalib_clipsam.clip.text_cache import cache_key, load_text, save_text
from anomalib_clipsam.hashing import hash_tensors
from anomalib_clipsam.precision import full_precision

if TYPE_CHECKING:
    from open_clip import CLIP

logger = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def text_anomaly_map(
    tokens: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor | float,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> torch.Tensor:
    """Compare patch tokens with the normal and the abnormal text, as APRIL-GAN defines it.

    Args:
        tokens (torch.Tensor): Patch tokens in CLIP's embedding space ``(B, h * w, C)``; they are normalised here.
        text (torch.Tensor): Normalised text directions ``(2, C)``, normal then abnormal.
        scale (torch.Tensor | float): Factor of the cosine; 100 in APRIL-GAN.
        grid (tuple[int, int]): Height and width of the patch grid.
        size (tuple[int, int]): Height and width of the map.

    Returns:
        torch.Tensor: Probability of the abnormal text per pixel, ``(B, H, W)`` in [0, 1].
    """
    with full_precision(tokens.device.type):  # the two logits differ little from one another
        logits = scale * F.normalize(tokens.float(), dim=-1) @ text.T  # (B, h * w, 2)
        logits = logits.transpose(1, 2).unflatten(-1, grid)  # (B, 2, h, w)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits.softmax(dim=1)[:, 1]


class Localizer(nn.Module, ABC):
    """Base of the localizers: holds the prompt ensemble and the text directions of the current class name.

    Args:
        ensemble (PromptEnsemble): States and templates of the text prompts.

    Attributes:
        image_size (int): Side of the square that CLIP sees, in pixels; set by the subclass.
    """

    image_size: int

    def __init__(self, ensemble: PromptEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.class_name: str | None = None
        self._text_of: dict[str, torch.Tensor] = {}

    def set_class_name(self, class_name: str) -> None:
        """Ask about parts of this name from now on. The text is encoded once per class name.

        Args:
            class_name (str): Name of the part, as it stands in the text prompts.
        """
        if class_name != self.class_name:
            self._use_text(self.text_of(class_name))
            self.class_name = class_name

    def text_of(self, class_name: str) -> torch.Tensor:
        """Give the text directions of a class name, encoded when they are first asked for.

        Args:
            class_name (str): Name of the part.

        Returns:
            torch.Tensor: ``(2, C)``, normal and abnormal, on the CPU.
        """
        if class_name not in self._text_of:
            self._text_of[class_name] = self._encode_text(class_name).cpu()
        return self._text_of[class_name]

    def restore_text(self, class_name: str, text: torch.Tensor) -> None:
        """Take text directions over from a checkpoint, in place of encoding them.

        Args:
            class_name (str): Name of the part.
            text (torch.Tensor): What :meth:`text_of` gave, for the same weights and ensemble.
        """
        self._text_of[class_name] = text
        self.class_name = None

    @abstractmethod
    def _encode_text(self, class_name: str) -> torch.Tensor:
        """Encode the ensemble for a class name to ``(2, C)``, normal and abnormal."""

    @abstractmethod
    def _use_text(self, text: torch.Tensor) -> None:
        """Use these text directions ``(2, C)`` in the passes to come."""

    @abstractmethod
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locate what looks damaged.

        Args:
            image (torch.Tensor): ``(B, 3, H, W)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Anomaly map S_a ``(B, H, W)`` in [0, 1], and CLIP's global text score
            ``(B,)`` in [0, 1].
        """


class _ClipLocalizer(Localizer):
    """What the localizers on a ViT of open_clip share: resizing, embedding of the image, text directions."""

    def __init__(self, clip: CLIP, ensemble: PromptEnsemble, image_size: int) -> None:
        super().__init__(ensemble)
        self.clip = clip
        patch = clip.visual.patch_size[0]
        if image_size < patch or image_size % patch:
            msg = f"CLIP's image size {image_size} is no multiple of its patch size {patch}. Choose a multiple."
            raise ValueError(msg)
        self.image_size = image_size
        self.grid = (image_size // patch, image_size // patch)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("text", torch.zeros(2, clip.text_projection.shape[1]), persistent=False)

    def _encode_text(self, class_name: str) -> torch.Tensor:
        tower = {name: value for name, value in self.clip.named_parameters() if not name.startswith("visual.")}
        key = cache_key(hash_tensors(tower), self.ensemble.sentences(class_name))
        text = load_text(key)
        if text is None:
            text = encode_ensemble(self.clip, self.ensemble, class_name)
            save_text(key, text.cpu())
        return text

    def _use_text(self, text: torch.Tensor) -> None:
        self.text = text.to(self.text)

    def _position_embedding(self) -> torch.Tensor:
        """Position embedding ``(L, D)`` for the grid in use, interpolated where CLIP was trained on another one."""
        embedding = self.clip.visual.positional_embedding
        trained_grid = tuple(self.clip.visual.grid_size)
        if trained_grid == self.grid:
            return embedding
        patches = embedding[1:].T.unflatten(-1, trained_grid).unsqueeze(0)  # (1, D, h, w)
        patches = F.interpolate(patches, self.grid, mode="bicubic", align_corners=False)
        return torch.cat([embedding[:1], patches.flatten(2).squeeze(0).T])

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        """Resize and normalise the image as CLIP was trained, and turn it into the tokens ``(B, L, D)`` of block 1."""
        visual = self.clip.visual
        size = (self.image_size, self.image_size)
        if tuple(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        patches = visual.conv1((image - self.mean) / self.std).flatten(2).transpose(1, 2)  # (B, h * w, D)
        class_token = visual.class_embedding.expand(image.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([class_token, patches], dim=1) + self._position_embedding())

    def _global_score(self, tokens: torch.Tensor) -> torch.Tensor:
        """Probability ``(B,)`` that CLIP's own image embedding fits the abnormal text."""
        visual = self.clip.visual
        with full_precision(tokens.device.type):
            embedding = F.normalize(visual.ln_post(tokens[:, 0].float()) @ visual.proj, dim=-1)
            return (self.clip.logit_scale.exp() * embedding @ self.text.T).softmax(dim=-1)[:, 1]


class DenseLocalizer(_ClipLocalizer):
    """Patch tokens of several blocks against the normal and abnormal text, with value-value attention.

    A second path branches off before the last blocks and collects their value-value attention without their MLPs: each
    token gathers from tokens that carry like content, so that patch tokens keep their place (CLIP Surgery). After every
    block of that path its tokens are projected to CLIP's embedding space and compared with the text; S_a is the mean
    over these taps. [ours: the branch before the last quarter of the blocks]

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.
        vv_blocks (int | None): Number of last blocks on the value-value path. Defaults to a quarter of the blocks, at
            least two.

    Raises:
        ValueError: If ``vv_blocks`` is not between 1 and the number of blocks.
    """

    def __init__(self, clip: CLIP, ensemble: PromptEnsemble, image_size: int, vv_blocks: int | None = None) -> None:
        super().__init__(clip, ensemble, image_size)
        depth = len(clip.visual.transformer.resblocks)
        self.vv_blocks = max(2, depth // 4) if vv_blocks is None else vv_blocks
        if not 1 <= self.vv_blocks <= depth:
            msg = f"vv_blocks must be between 1 and {depth}, the number of CLIP's blocks, not {vv_blocks}."
            raise ValueError(msg)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locate what looks damaged. See :meth:`Localizer.forward`."""
        visual = self.clip.visual
        scale = self.clip.logit_scale.exp()
        blocks = list(visual.transformer.resblocks)
        tokens = self._embed(image)  # (B, L, D)
        for block in blocks[: -self.vv_blocks]:
            tokens = run_block(block, tokens)

        vv_tokens, maps = tokens, []
        for block in blocks[-self.vv_blocks :]:
            queries, keys, values = project(block, tokens)
            vv_tokens = vv_tokens + attend(block, values, values, values)
            if block is blocks[-1]:  # of its output the class token alone is used
                queries, tokens = queries[:, :, :1], tokens[:, :1]
            tokens = tokens + attend(block, queries, keys, values)
            tokens = tokens + feed_forward(block, tokens)
            patches = visual.ln_post(vv_tokens[:, 1:]) @ visual.proj  # (B, h * w, C)
            maps.append(text_anomaly_map(patches, self.text, scale, self.grid, tuple(image.shape[-2:])))
        return torch.stack(maps).mean(dim=0), self._global_score(tokens)


class AprilGanLocalizer(_ClipLocalizer):
    """APRIL-GAN's map: CLIP's plain patch tokens of some blocks, each through a trained linear adapter.

    The adapters take the residual stream right after a block, as published. The mean over the taps is taken.

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.
        adapters (nn.ModuleList): One ``nn.Linear(D, C)`` per tap, see :func:`build_adapters`.
        taps (tuple[int, ...] | None): Blocks, counted from 1, that are tapped. Defaults to evenly spaced ones that end
            with the last: 6, 12, 18, 24 for four adapters and ViT-L.

    Raises:
        ValueError: If the taps do not fit the adapters or the blocks.
    """

    def __init__(
        self,
        clip: CLIP,
        ensemble: PromptEnsemble,
        image_size: int,
        adapters: nn.ModuleList,
        taps: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(clip, ensemble, image_size)
        depth = len(clip.visual.transformer.resblocks)
        self.adapters = adapters
        self.taps = tuple(taps or (depth * (i + 1) // len(adapters) for i in range(len(adapters))))
        if len(self.taps) != len(adapters) or len(set(self.taps) & set(range(1, depth + 1))) != len(adapters):
            msg = (
                f"Taps {self.taps} do not fit {len(adapters)} adapters and {depth} blocks. "
                "Name one block, counted from 1, for each adapter."
            )
            raise ValueError(msg)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locate what looks damaged. See :meth:`Localizer.forward`."""
        tokens, maps = self._embed(image), []
        for index, block in enumerate(self.clip.visual.transformer.resblocks, start=1):
            tokens = run_block(block, tokens)
            if index in self.taps:
                patches = self.adapters[self.taps.index(index)](tokens[:, 1:])  # (B, h * w, C)
                maps.append(text_anomaly_map(patches, self.text, 100.0, self.grid, tuple(image.shape[-2:])))
        return torch.stack(maps).mean(dim=0), self._global_score(tokens)


def build_adapters(state_dict: dict[str, torch.Tensor], width: int, embed_dim: int) -> nn.ModuleList:
    """Build APRIL-GAN's adapters from their published state dict (keys ``fc.<tap>.weight`` and ``fc.<tap>.bias``).

    Args:
        state_dict (dict[str, torch.Tensor]): The layer's state dict, or the published file's whole content with it
            under ``"trainable_linearlayer"``.
        width (int): Width D of CLIP's ViT.
        embed_dim (int): Size C of CLIP's embedding.

    Returns:
        nn.ModuleList: One ``nn.Linear(D, C)`` per tap.

    Raises:
        ValueError: If keys or shapes are not those.
    """
    state_dict = state_dict.get("trainable_linearlayer", state_dict)
    state_dict = {key.removeprefix("fc."): value for key, value in state_dict.items()}
    count = len(state_dict) // 2
    expected = {
        f"{i}.{name}": shape
        for i in range(count)
        for name, shape in (("weight", (embed_dim, width)), ("bias", (embed_dim,)))
    }
    found = {key: tuple(getattr(value, "shape", ())) for key, value in state_dict.items()}
    if not count or found != expected:
        msg = (
            f"The adapter weights hold {found}, but this CLIP needs 'fc.<tap>.weight' of shape {(embed_dim, width)} "
            f"and 'fc.<tap>.bias' of shape {(embed_dim,)}. Take adapters trained with the same CLIP architecture."
        )
        raise ValueError(msg)
    adapters = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(count))
    adapters.load_state_dict(state_dict)
    return adapters


class WinClipLocalizer(Localizer):
    """Window scores of anomalib's own ``WinClipModel``, which brings its own CLIP (ViT-B-16-plus-240).

    Args:
        ensemble (PromptEnsemble): Must be the default: ``WinClipModel`` makes its own prompts.

    Raises:
        ImportError: If the installed open_clip is newer than anomalib's model works with.
        ValueError: If the ensemble is not the default.
    """

    def __init__(self, ensemble: PromptEnsemble) -> None:
        super().__init__(ensemble)
        if ensemble != PromptEnsemble():
            msg = "Localizer 'winclip' makes its own prompts. Leave `prompts` out or choose localizer 'dense'."
            raise ValueError(msg)
        from anomalib.models.image.winclip.torch_model import WinClipModel

        self.winclip = WinClipModel(apply_transform=False)
        if self.winclip.clip.visual.transformer.resblocks[0].attn.batch_first:
            msg = (
                "Localizer 'winclip' calls anomalib's WinClipModel, which gives wrong scores with this open_clip. "
                "Run: pip install 'open_clip_torch>=2.24,<2.26.1'"
            )
            raise ImportError(msg)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.image_size = self.winclip.clip.visual.image_size[0]

    def _encode_text(self, class_name: str) -> torch.Tensor:
        self.winclip.setup(class_name)
        return self.winclip.text_embeddings

    def _use_text(self, text: torch.Tensor) -> None:
        device = self.winclip.clip.text_projection.device
        self.winclip._text_embeddings = text.to(device)  # noqa: SLF001  # the setter of anomalib's buffer

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locate what looks damaged. See :meth:`Localizer.forward`."""
        size = (self.image_size, self.image_size)
        resized = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        with full_precision(image.device.type):  # its comparisons with the text are inside
            prediction = self.winclip((resized - self.mean) / self.std)
        anomaly_map = F.interpolate(prediction.anomaly_map.unsqueeze(1), image.shape[-2:], mode="bilinear")
        return anomaly_map.squeeze(1).clamp(0, 1), prediction.pred_score.clamp(0, 1)
