# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The table of weights: which files there are, where they are published, how they are known, and what goes together.

Rows only: nothing is looked for or fetched here, and neither torch nor anomalib is needed to read them.

Sources:
    - CLIP: https://github.com/openai/CLIP, and the same weights as open_clip's state dict,
      https://huggingface.co/timm/vit_large_patch14_clip_336.openai
    - SAM: https://github.com/facebookresearch/segment-anything#model-checkpoints
    - APRIL-GAN's adapters: https://github.com/ByChelsea/VAND-APRIL-GAN
"""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import hf_hub_url


@dataclass(frozen=True)
class Source:
    """A file that holds the weights, and where it is published. What two sources of a row give is the same model.

    Args:
        filename (str): Name of the file on this machine.
        size (int | None): Size in bytes; ``None`` where it is not known.
        sha256 (str | None): Its hash; ``None`` where it is not known. Such a file is never fetched, only brought.
        url (str | None): Address. Defaults to ``None``.
        repository (str | None): Repository of the Hugging Face hub, in place of an address. Defaults to ``None``.
        revision (str | None): Commit in that repository. Defaults to ``None``.
        path (str | None): Path of the file in that repository. Defaults to ``None``.
    """

    filename: str
    size: int | None
    sha256: str | None
    url: str | None = None
    repository: str | None = None
    revision: str | None = None
    path: str | None = None

    @property
    def address(self) -> str | None:
        """Where it is fetched from; ``None`` for a file that the package carries."""
        if self.repository is None:
            return self.url
        return hf_hub_url(self.repository, self.path, revision=self.revision)


@dataclass(frozen=True)
class WeightFile:
    """A row of the table: one network's weights.

    Args:
        name (str): Name of the row.
        role (str): ``"CLIP"``, ``"SAM"`` or ``"adapters"``.
        architecture (str): Name that the architecture is built by; of adapters, the CLIP that they go with.
        image_size (int): Side of the square that the model is shown, in pixels.
        licence (str): SPDX identifier of the licence.
        sources (tuple[Source, ...]): Where it comes from, the first choice first.
        quick_gelu (bool): Whether a CLIP was trained with QuickGELU. Defaults to ``False``.
    """

    name: str
    role: str
    architecture: str
    image_size: int
    licence: str
    sources: tuple[Source, ...]
    quick_gelu: bool = False


@dataclass(frozen=True)
class WeightPair:
    """A CLIP and a SAM that go together.

    Args:
        clip (WeightFile): CLIP's weights.
        sam (WeightFile): SAM's weights.
        map_size (int): Default side of maps and masks, in pixels.
    """

    clip: WeightFile
    sam: WeightFile
    map_size: int


OPENAI_CLIP = Source(
    filename="ViT-L-14-336px.pt",
    size=934_088_680,
    sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    url="https://openaipublic.azureedge.net/clip/models/"
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
)
_CLIP = WeightFile(
    name="clip_vit_l_14_336",
    role="CLIP",
    architecture="ViT-L-14-336",
    image_size=518,
    licence="MIT",
    sources=(
        Source(
            filename="ViT-L-14-336px.safetensors",
            size=1_711_828_444,
            sha256="fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
            repository="timm/vit_large_patch14_clip_336.openai",
            revision="81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
            path="open_clip_model.safetensors",
        ),
        OPENAI_CLIP,
    ),
    quick_gelu=True,
)


def _sam(architecture: str, filename: str, size: int, sha256: str) -> WeightFile:
    url = Source(filename, size, sha256, url=f"https://dl.fbaipublicfiles.com/segment_anything/{filename}")
    hub = Source(
        filename,
        size,
        sha256,
        repository="ybelkada/segment-anything",
        revision="7790786db131bcdc639f24a915d9f2c331d843ee",
        path=f"checkpoints/{filename}",
    )
    return WeightFile(f"sam_{architecture}", "SAM", architecture, 1024, "Apache-2.0", (hub, url))


def _demo(role: str, image_size: int, size: int, sha256: str) -> WeightFile:
    source = Source(f"{role.lower()}.safetensors", size, sha256)
    return WeightFile(f"{role.lower()}_demo", role, "demo", image_size, "Apache-2.0", (source,))


WEIGHTS: dict[str, WeightPair] = {
    "vit_h": WeightPair(
        _CLIP,
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        map_size=518,
    ),
    "vit_l": WeightPair(
        _CLIP,
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        map_size=518,
    ),
    "vit_b": WeightPair(
        _CLIP,
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        map_size=518,
    ),
    "demo": WeightPair(
        _demo("CLIP", 160, 8_818_306, "a56e36bddb16a39ddf9230e0914eb980303e3525ec67655f3742e55901dd6480"),
        _demo("SAM", 192, 5_600_720, "398ebb8300492ef234f2caaf14878f525a38662f782a030fa478cde06d34bf86"),
        map_size=192,
    ),
}


def _adapters(data: str) -> WeightFile:
    source = Source(
        filename=f"{data}_pretrained.pth",
        size=None,
        sha256=None,
        url="https://github.com/ByChelsea/VAND-APRIL-GAN (exps/pretrained)",
    )
    return WeightFile(f"april_gan_{data}", "adapters", _CLIP.architecture, _CLIP.image_size, "MIT", (source,))


ADAPTERS: dict[str, WeightFile] = {row.name: row for row in (_adapters("mvtec"), _adapters("visa"))}
"""APRIL-GAN's adapters by name, which says what they were trained on. Their hashes are not known here."""


def get_weights(name: str) -> WeightPair:
    """Look a pair up in the table.

    Args:
        name (str): ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"demo"``.

    Returns:
        WeightPair: The pair.

    Raises:
        ValueError: If there is no such pair.
    """
    if name not in WEIGHTS:
        msg = f"Unknown weights '{name}'. Choose one of {', '.join(WEIGHTS)}."
        raise ValueError(msg)
    return WEIGHTS[name]


def find_sam(architecture: str) -> WeightFile:
    """Look SAM's weights up by their architecture.

    Args:
        architecture (str): ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"demo"``.

    Returns:
        WeightFile: The row of the table.

    Raises:
        ValueError: If there is no such architecture.
    """
    rows = {pair.sam.architecture: pair.sam for pair in WEIGHTS.values()}
    if architecture not in rows:
        msg = f"Unknown sam_architecture '{architecture}'. Choose one of {', '.join(rows)}."
        raise ValueError(msg)
    return rows[architecture]


def all_rows() -> dict[str, WeightFile]:
    """List the rows of the table.

    Returns:
        dict[str, WeightFile]: Rows by name.
    """
    return {row.name: row for pair in WEIGHTS.values() for row in (pair.clip, pair.sam)} | ADAPTERS
