# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The table of weights: what is published where, and how rows are found."""

import pytest

from anomalib_clipsam.weights.table import WEIGHTS, all_rows, find_sam, get_weights


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


def test_hub_revisions_are_commits() -> None:
    """A branch could be moved to other weights."""
    sources = [source for row in all_rows().values() for source in row.sources if row.role != "adapters"]
    assert all(len(source.sha256) == 64 and source.size > 0 for source in sources)
    assert all(len(source.revision) == 40 for source in sources if source.repository)


@pytest.mark.parametrize("name", ["", "vit_t", "DEMO"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown weights '{name}'. Choose one of vit_h, vit_l, vit_b, demo"):
        get_weights(name)
    with pytest.raises(ValueError, match=f"Unknown sam_architecture '{name}'. Choose one of vit_h"):
        find_sam(name)


def test_architecture_finds_its_row() -> None:
    assert {name: find_sam(name) for name in WEIGHTS} == {name: pair.sam for name, pair in WEIGHTS.items()}
