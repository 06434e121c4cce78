# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The table of weights: which files there are, where they are published, how they are known, and what goes together.

Rows only: nothing is looked for or fetched here, and neither torch nor anomalib is needed to read them.

Sources:
    - CLIP: https://github.com/openai/CLIP, and the same weights as open_clip's state dict,
      https://huggingface.co/timm/vit_large_patch14_clip_336.openai
    - SAM: https://github.com/facebookresearch/segment-anything#model-checkpoints
    - MobileSAM: https://github.com/ChaoningZhang/MobileSAM
    - APRIL-GAN's adapters: https://github.com/ByChelsea/VAND-APRIL-GAN
    - AnomalyCLIP's prompts: https://github.com/zqhang/AnomalyCLIP
    - Crane's prompts: https://github.com/AlirezaSalehy/Crane
"""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import hf_hub_url

from anomalib_clipsam.errors.errors import UserValueError


@dataclass(frozen=True)
class Source:
    """A file that holds the weights, and where it is published. What two sources of a row give is the same model.

    Args:
        filename (str): Name of the file on this machine.
        size (int | None): Size in bytes; ``None`` where it is not known to the last one.
        sha256 (str | None): Its hash; ``None`` where the blob's is known in its place.
        git_blob (str | None): Its name in a git repository, a hash of content and length. Defaults to ``None``.
        about (int | None): Size in bytes as far as it is known, where ``size`` is not. Defaults to ``None``.
        url (str | None): Address. Defaults to ``None``.
        repository (str | None): Repository of the Hugging Face hub, in place of an address. Defaults to ``None``.
        revision (str | None): Commit in that repository. Defaults to ``None``.
        path (str | None): Path of the file in that repository. Defaults to ``None``.

    Raises:
        ValueError: If no hash is given: what a network gives could then not be told from the file.
    """

    filename: str
    size: int | None
    sha256: str | None
    git_blob: str | None = None
    about: int | None = None
    url: str | None = None
    repository: str | None = None
    revision: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        """Check that there is a hash."""
        if self.sha256 is None and self.git_blob is None:
            msg = f"Nothing tells {self.filename} from another file. Give its SHA-256 or its git blob id."
            raise UserValueError(msg)

    @property
    def hash(self) -> str:
        """What the file is known by, in words."""
        return f"SHA-256 {self.sha256}" if self.sha256 else f"git blob {self.git_blob}"

    @property
    def bytes(self) -> int:
        """Size, or as much as is known of it."""
        return self.size or self.about or 0

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
        role (str): ``"CLIP"``, ``"SAM"``, ``"adapters"`` or ``"prompts"``; the last two are learned weights beside a
            CLIP that was not changed.
        architecture (str): Name that the architecture is built by; of learned weights, the CLIP that they go with.
        image_size (int): Side of the square that the model is shown, in pixels.
        licence (str): SPDX identifier of the licence.
        sources (tuple[Source, ...]): Where it comes from, the first choice first.
        quick_gelu (bool): Whether a CLIP was trained with QuickGELU; of learned weights, whether their CLIP ran with it
            when they were. Defaults to ``False``.
        localizer (str | None): Localizer that learned weights are for. Defaults to ``None``.
        trained_on (str | None): Data set that learned weights were trained on. Defaults to ``None``.
    """

    name: str
    role: str
    architecture: str
    image_size: int
    licence: str
    sources: tuple[Source, ...]
    quick_gelu: bool = False
    localizer: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class WeightPair:
    """A CLIP and a SAM that go together.

    Args:
        clip (WeightFile): CLIP's weights.
        sam (WeightFile): SAM's weights.
        map_size (int): Default side of maps and masks, in pixels.
        references (str): What a picture is compared with beside the text, by default. Defaults to ``"none"``.
        localizer (str): The localizer that it has unless the user names one. Defaults to ``"dense"``.
    """

    clip: WeightFile
    sam: WeightFile
    map_size: int
    references: str = "none"
    localizer: str = "dense"


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


def _raw(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


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


def _carried(role: str, image_size: int, size: int, sha256: str, localizer: str | None = None) -> WeightFile:
    source = Source(f"lite_{role.lower()}.safetensors", size, sha256)
    name = f"{localizer or role.lower()}_lite"
    return WeightFile(name, role, "lite", image_size, "Apache-2.0", (source,), localizer=localizer)


_CLIP_B = WeightFile(
    name="clip_vit_b_16",
    role="CLIP",
    architecture="ViT-B-16",
    image_size=448,  # the whole with MobileSAM: 0.55 of the operations of anomalib's WinCLIP
    licence="MIT",
    sources=(
        Source(
            filename="ViT-B-16.safetensors",
            size=598_516_980,
            sha256="4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
            repository="timm/vit_base_patch16_clip_224.openai",
            revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
            path="open_clip_model.safetensors",
        ),
    ),
    quick_gelu=True,
)
_MOBILE_SAM = WeightFile(
    name="sam_vit_t",
    role="SAM",
    architecture="vit_t",
    image_size=1024,
    licence="Apache-2.0",
    sources=(
        Source(
            filename="mobile_sam.pt",
            size=40_728_226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            url=_raw("ChaoningZhang/MobileSAM", "34bbbfdface3c18e5221aa7de6032d7220c6c6a1", "weights/mobile_sam.pt"),
        ),
    ),
)
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
        localizer="crane",  # of what can be fetched the best at image level, and near the best in F1-max
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
        localizer="crane",  # of what can be fetched the best at image level, and near the best in F1-max
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
        localizer="crane",  # of what can be fetched the best at image level, and near the best in F1-max
    ),
    "mobile": WeightPair(_CLIP_B, _MOBILE_SAM, map_size=448),
    "lite": WeightPair(
        _carried("CLIP", 320, 11_978_690, "50e292d94218b11c0d7af7750817753b932e2008d942425dd4b01c61bb5f5e5a"),
        _carried("SAM", 256, 7_849_976, "136170158e9fa8b2de86dfed91e500c99e72676f908bf68e5d2c6a7101fba7c3"),
        map_size=256,
        localizer="pyramid",
    ),
}
WEIGHTS["demo"] = WEIGHTS["lite"]  # its name in version 0.1


VISA, MVTEC_AD = "VisA", "MVTec AD"
DATA_SETS = {"Visa": VISA, "MVTecAD": MVTEC_AD}
"""Data sets that learned weights were trained on, by the names of anomalib's data modules."""


def _learned(localizer: str, role: str, trained_on: str, source: Source, quick_gelu: bool) -> WeightFile:
    name = f"{localizer}_{'visa' if trained_on == VISA else 'mvtec'}"
    return WeightFile(
        name, role, _CLIP.architecture, _CLIP.image_size, "MIT", (source,), quick_gelu, localizer, trained_on
    )


def _april_gan(trained_on: str, filename: str, git_blob: str) -> WeightFile:
    commit = "f13b8a634e04f9fde8fa03db125b25af5695d8e1"
    url = _raw("ByChelsea/VAND-APRIL-GAN", commit, f"exps/pretrained/{filename}")
    source = Source(filename, None, None, git_blob, about=12_600_000, url=url)
    # At 518 px its code builds CLIP from a configuration that does not name QuickGELU: the adapters know plain GELU.
    return _learned("april_gan", "adapters", trained_on, source, quick_gelu=False)


def _anomaly_clip(trained_on: str, folder: str, sha256: str) -> WeightFile:
    filename = f"anomaly_clip_trained_on_{'visa' if trained_on == VISA else 'mvtec'}.pth"
    commit = "45ed4dd35c05797d854294b5e8d585c545920089"
    url = _raw("zqhang/AnomalyCLIP", commit, f"checkpoints/{folder}/epoch_15.pth")
    return _learned(
        "anomaly_clip", "prompts", trained_on, Source(filename, 22_631_975, sha256, url=url), quick_gelu=True
    )


def _crane(trained_on: str, sha256: str) -> WeightFile:
    data = "visa" if trained_on == VISA else "mvtec"
    commit = "39181f9f718a28c1b06b5aa72bfb81e74b9a2cc3"
    url = _raw("AlirezaSalehy/Crane", commit, f"checkpoints/trained_on_{data}_crane/epoch_5.pth")
    source = Source(f"crane_trained_on_{data}.pth", 576_693, sha256, url=url)
    return _learned("crane", "prompts", trained_on, source, quick_gelu=True)


_LEARNED = (
    _carried(
        "adapters",
        320,
        2_639_632,
        "9c9e4dd17d066e0f31c6ff7c24d88a54f3918f65aedc48491a90430267f22064",
        localizer="pyramid",
    ),
    _crane(VISA, "66d070e3b72b61704495bdadd0f8c4979b62a23ca7211cfe08bd08ec7c0ab831"),
    _crane(MVTEC_AD, "dc9bf1584c8abd8744f39e9607fdea8a04c8d30aa147de595d22bf444488e4c8"),
    # The folder without a data set's name is the one trained on VisA; "_visa" is what the other was tested on.
    _anomaly_clip(VISA, "9_12_4_multiscale", "94ce202da3e6486a864b904fdfed5057de75846c5834e446fd1d2fe7f97acb44"),
    _anomaly_clip(
        MVTEC_AD, "9_12_4_multiscale_visa", "415c5dcb52668b8c33fb9c1a351c686d632b919df5b384d63fa9ce7a2338ced4"
    ),
    _april_gan(VISA, "visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
    _april_gan(MVTEC_AD, "mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f"),
)
LEARNED: dict[str, WeightFile] = {row.name: row for row in _LEARNED}
"""Learned weights beside CLIP's by name, which says what they are for and what they were trained on."""


def learned_for(localizer: str, tested_on: str | None = None) -> WeightFile:
    """Choose published learned weights for a localizer, never those that were trained on what is tested.

    Args:
        localizer (str): Localizer that needs some.
        tested_on (str | None): Data set that is tested, as :data:`DATA_SETS` calls it. Defaults to ``None``.

    Returns:
        WeightFile: The first row that was not trained on it: of published weights those trained on VisA, those trained
        on MVTec AD if VisA is tested; the carried ones know neither.

    Raises:
        ValueError: If none are published for it.
    """
    for row in LEARNED.values():  # those trained on VisA stand first
        if row.localizer == localizer and (tested_on is None or row.trained_on != tested_on):
            return row
    msg = f"No learned weights are published for localizer='{localizer}'. Name a file with `adapters`."
    raise UserValueError(msg)


def pair_files(name: str) -> tuple[WeightFile, ...]:
    """List all files that a pair needs, whatever is tested.

    Args:
        name (str): Key of :data:`WEIGHTS`.

    Returns:
        tuple[WeightFile, ...]: CLIP, SAM, and the learned weights of its localizer.
    """
    pair = WEIGHTS[name]
    return (pair.clip, pair.sam, *(row for row in LEARNED.values() if row.localizer == pair.localizer))


def get_weights(name: str) -> WeightPair:
    """Look a pair up in the table.

    Args:
        name (str): A key of :data:`WEIGHTS`.

    Returns:
        WeightPair: The pair.

    Raises:
        ValueError: If there is no such pair.
    """
    if name not in WEIGHTS:
        msg = f"Unknown weights '{name}'. Choose one of {', '.join(WEIGHTS)}."
        raise UserValueError(msg)
    return WEIGHTS[name]


def find_sam(architecture: str) -> WeightFile:
    """Look SAM's weights up by their architecture.

    Args:
        architecture (str): ``"vit_h"``, ``"vit_l"``, ``"vit_b"``, ``"vit_t"`` or ``"lite"``.

    Returns:
        WeightFile: The row of the table.

    Raises:
        ValueError: If there is no such architecture.
    """
    rows = {pair.sam.architecture: pair.sam for pair in WEIGHTS.values()}
    if architecture not in rows:
        msg = f"Unknown sam_architecture '{architecture}'. Choose one of {', '.join(rows)}."
        raise UserValueError(msg)
    return rows[architecture]


def all_rows() -> dict[str, WeightFile]:
    """List the rows of the table.

    Returns:
        dict[str, WeightFile]: Rows by name.
    """
    return {row.name: row for pair in WEIGHTS.values() for row in (pair.clip, pair.sam)} | LEARNED
