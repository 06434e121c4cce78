# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam``: what anomalib's own commands have no place for.

Example:
    >>> # anomalib-clipsam prompts > prompts.yaml                # the default ensemble, to be edited
    >>> # anomalib-clipsam prompts --prompts prompts.yaml        # check the file
    >>> # anomalib-clipsam prompts --class-name "metal nut"      # every sentence that CLIP is asked
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import yaml

from anomalib_clipsam import __version__


def prompts(class_name: str | None, path: str | None) -> str:
    """Write a prompt ensemble out.

    Args:
        class_name (str | None): Name of the part, to be put into every sentence. ``None`` keeps the states and
            templates apart, in the form of a prompt file.
        path (str | None): Prompt file. ``None`` takes the default ensemble.

    Returns:
        str: YAML: the prompt file, or the lists ``normal`` and ``abnormal`` of whole sentences.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a prompt file.
    """
    # Imported here, because it brings anomalib with it: `--help` and `--version` answer at once.
    from anomalib_clipsam.clip.prompts import PromptEnsemble

    ensemble = PromptEnsemble() if path is None else PromptEnsemble.from_file(path)
    if class_name is None:
        content = {key: list(entries) for key, entries in asdict(ensemble).items()}
    else:
        content = dict(zip(("normal", "abnormal"), ensemble.sentences(class_name), strict=True))
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args (Sequence[str] | None): Arguments of the command line. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(prog="anomalib-clipsam", description="Tools beside anomalib's ClipSam.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prompts",
        help="print the text prompts",
        description="Print the prompt ensemble as a file for `--model.prompts`, or, with a class name, every sentence.",
    )
    command.add_argument("--class-name", metavar="NAME", help="put this name into every sentence")
    command.add_argument("--prompts", metavar="FILE.yaml", help="prompt file; the default ensemble if left out")
    options = parser.parse_args(args)
    try:
        text = prompts(options.class_name, options.prompts)
    except (OSError, ValueError) as error:
        command.exit(2, f"{command.prog}: {' '.join(str(error).split())}\n")
    print(text, end="")


if __name__ == "__main__":
    main()
