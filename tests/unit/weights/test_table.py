# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The table of weights: what is published where, and how rows are found."""

import re

import pytest

from anomalib_clipsam.weights.table import (
    LEARNED,
    WEIGHTS,
    Source,
    all_rows,
    find_sam,
    get_weights,
    learned_for,
    pair_files,
)

RAW = "https://raw.githubusercontent.com/"
CRANE = f"{RAW}AlirezaSalehy/Crane/39181f9f718a28c1b06b5aa72bfb81e74b9a2cc3/checkpoints"
ANOMALY_CLIP = f"{RAW}zqhang/AnomalyCLIP/45ed4dd35c05797d854294b5e8d585c545920089/checkpoints"
APRIL_GAN = f"{RAW}ByChelsea/VAND-APRIL-GAN/f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained"


@pytest.mark.parametrize(
    ("name", "filename", "size", "sha256"),
    [
        (
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        (
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        (
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ],
)
def test_published_sam(name: str, filename: str, size: int, sha256: str) -> None:
    row = get_weights(name).sam
    assert (row.name, row.role, row.architecture) == (f"sam_{name}", "SAM", name)
    assert row.licence == "Apache-2.0"
    assert row.image_size == 1024
    assert {(source.filename, source.size, source.sha256) for source in row.sources} == {(filename, size, sha256)}
    hub, url = row.sources
    assert hub.address.endswith(f"/ybelkada/segment-anything/resolve/{hub.revision}/checkpoints/{filename}")
    assert url.address == f"https://dl.fbaipublicfiles.com/segment_anything/{filename}"


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_published_clip(name: str) -> None:
    pair = get_weights(name)
    assert (pair.clip.role, pair.clip.architecture, pair.clip.licence) == ("CLIP", "ViT-L-14-336", "MIT")
    assert pair.clip.quick_gelu
    assert pair.clip.image_size == pair.map_size == 518
    hub, url = pair.clip.sources
    assert hub.address.endswith(f"/{hub.repository}/resolve/{hub.revision}/open_clip_model.safetensors")
    assert url.sha256 == "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
    assert url.sha256 in url.address


def test_mobile_pair() -> None:
    pair = get_weights("mobile")
    (clip,), (sam,) = pair.clip.sources, pair.sam.sources
    assert (pair.clip.architecture, pair.clip.licence, pair.localizer) == ("ViT-B-16", "MIT", "dense")
    assert pair.clip.quick_gelu
    assert pair.clip.image_size == pair.map_size == 448
    commit = "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d"
    assert clip.address.endswith(f"/timm/vit_base_patch16_clip_224.openai/resolve/{commit}/open_clip_model.safetensors")
    assert (clip.size, clip.sha256[:16]) == (598_516_980, "4b8699299b1e8997")
    commit = "34bbbfdface3c18e5221aa7de6032d7220c6c6a1"
    assert sam.address == f"{RAW}ChaoningZhang/MobileSAM/{commit}/weights/mobile_sam.pt"
    assert (sam.size, sam.sha256[:16]) == (40_728_226, "6dbb90523a35330f")
    assert (pair.sam.architecture, pair.sam.image_size, pair.sam.licence) == ("vit_t", 1024, "Apache-2.0")


def test_hub_revisions_are_commits() -> None:
    """A branch could be moved to other weights."""
    sources = [source for row in all_rows().values() for source in row.sources]
    assert all((len(source.sha256 or "") == 64) != (len(source.git_blob or "") == 40) for source in sources)
    assert all(source.bytes > 0 for source in sources)
    assert all(len(source.revision) == 40 for source in sources if source.repository)
    raw = [source.address for source in sources if source.address and source.address.startswith(RAW)]
    assert len(raw) == 7
    assert all(re.fullmatch("[0-9a-f]{40}", address.split("/")[5]) for address in raw)


@pytest.mark.parametrize(
    ("name", "trained_on", "address", "size", "known_by"),
    [
        (
            "crane_visa",
            "VisA",
            f"{CRANE}/trained_on_visa_crane/epoch_5.pth",
            576_693,
            "SHA-256 66d070e3b72b61704495bdadd0f8c4979b62a23ca7211cfe08bd08ec7c0ab831",
        ),
        (
            "crane_mvtec",
            "MVTec AD",
            f"{CRANE}/trained_on_mvtec_crane/epoch_5.pth",
            576_693,
            "SHA-256 dc9bf1584c8abd8744f39e9607fdea8a04c8d30aa147de595d22bf444488e4c8",
        ),
        (
            "anomaly_clip_visa",
            "VisA",
            f"{ANOMALY_CLIP}/9_12_4_multiscale/epoch_15.pth",
            22_631_975,
            "SHA-256 94ce202da3e6486a864b904fdfed5057de75846c5834e446fd1d2fe7f97acb44",
        ),
        (
            "anomaly_clip_mvtec",
            "MVTec AD",
            f"{ANOMALY_CLIP}/9_12_4_multiscale_visa/epoch_15.pth",  # "_visa" is what it was tested on
            22_631_975,
            "SHA-256 415c5dcb52668b8c33fb9c1a351c686d632b919df5b384d63fa9ce7a2338ced4",
        ),
        (
            "april_gan_visa",
            "VisA",
            f"{APRIL_GAN}/visa_pretrained.pth",
            None,
            "git blob 86d6848c543f8393663d35c0333498ffb5ce9b68",
        ),
        (
            "april_gan_mvtec",
            "MVTec AD",
            f"{APRIL_GAN}/mvtec_pretrained.pth",
            None,
            "git blob a057cec6c2ba5996baa0160a51e155908156813f",
        ),
    ],
)
def test_learned_weights(name: str, trained_on: str, address: str, size: int | None, known_by: str) -> None:
    row = LEARNED[name]
    (source,) = row.sources
    assert (row.trained_on, row.localizer) == (trained_on, name.rpartition("_")[0])
    assert (source.address, source.size, source.hash) == (address, size, known_by)
    assert (row.architecture, row.image_size, row.licence) == ("ViT-L-14-336", 518, "MIT")
    assert row.quick_gelu == (row.localizer != "april_gan")  # whose code runs OpenAI's weights through plain GELU


def test_no_two_files_share_a_name() -> None:
    """All lie in one folder; Crane's and AnomalyCLIP's files are all called epoch_N.pth where they are published."""
    names = [{source.filename for source in row.sources} for row in all_rows().values()]
    assert sum(map(len, names)) == len(set().union(*names))


@pytest.mark.parametrize("localizer", ["crane", "anomaly_clip", "april_gan"])
@pytest.mark.parametrize(
    ("tested_on", "trained_on"), [(None, "VisA"), ("MVTec AD", "VisA"), ("VisA", "MVTec AD"), ("another", "VisA")]
)
def test_learned_weights_never_know_what_is_tested(localizer: str, tested_on: str | None, trained_on: str) -> None:
    row = learned_for(localizer, tested_on)
    assert (row.localizer, row.trained_on) == (localizer, trained_on)


def test_localizer_without_published_weights() -> None:
    with pytest.raises(ValueError, match="No learned weights are published for localizer='dense'"):
        learned_for("dense")


def test_every_pair_with_the_large_clip_has_crane() -> None:
    found = {name: (pair.clip.architecture, pair.localizer) for name, pair in WEIGHTS.items()}
    assert all((clip == "ViT-L-14-336") == (localizer == "crane") for clip, localizer in found.values())
    assert [row.name for row in pair_files("vit_b")] == [
        "clip_vit_l_14_336",
        "sam_vit_b",
        "crane_visa",
        "crane_mvtec",
    ]


def test_source_without_a_hash() -> None:
    with pytest.raises(ValueError, match=r"Nothing tells a\.pth from another file"):
        Source("a.pth", 7, None, url="https://example.invalid/a.pth")


@pytest.mark.parametrize("name", ["", "vit_x", "DEMO"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"Unknown weights '{name}'. Choose one of vit_h, vit_l, vit_b, mobile, lite, demo"
    ):
        get_weights(name)
    with pytest.raises(ValueError, match=f"Unknown sam_architecture '{name}'. Choose one of vit_h"):
        find_sam(name)


def test_architecture_finds_its_row() -> None:
    rows = {pair.sam.architecture: pair.sam for pair in WEIGHTS.values()}
    assert {"vit_h", "vit_l", "vit_b", "vit_t", "lite"} <= rows.keys()
    assert {name: find_sam(name) for name in rows} == rows
