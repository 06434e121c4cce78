# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam: zero-shot anomaly detection with CLIP and SAM, a model for anomalib.

Importing this package imports nothing else: each class below is loaded on first use.

Example:
    >>> from anomalib_clipsam import ClipSam
    >>> model = ClipSam(weights="demo", class_name="part").eval()

Reference:
    Hou, Xu, Li, Ruan, Qiu, "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

# A plain constant, which type checkers know: `typing` would double the cost of this import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from anomalib_clipsam.drawing.visualizers import PromptVisualizer, ResultVisualizer
    from anomalib_clipsam.drawn_parts.datamodule import DrawnParts
    from anomalib_clipsam.lightning_model import ClipSam
    from anomalib_clipsam.sam_post_processor.post_processor import SamPostProcessor
    from anomalib_clipsam.torch_model import ClipSamModel

__version__ = "0.2.0"

__all__ = [
    "ClipSam",
    "ClipSamModel",
    "DrawnParts",
    "PromptVisualizer",
    "ResultVisualizer",
    "SamPostProcessor",
    "__version__",
]

_LAZY = {
    "ClipSam": "anomalib_clipsam.lightning_model",
    "ClipSamModel": "anomalib_clipsam.torch_model",
    "DrawnParts": "anomalib_clipsam.drawn_parts.datamodule",
    "PromptVisualizer": "anomalib_clipsam.drawing.visualizers",
    "ResultVisualizer": "anomalib_clipsam.drawing.visualizers",
    "SamPostProcessor": "anomalib_clipsam.sam_post_processor.post_processor",
}


def __getattr__(name: str) -> object:
    """Import the module of a public class on first use."""
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}. It has {', '.join(__all__)}."
        raise AttributeError(msg)
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
