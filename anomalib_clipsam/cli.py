# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam``: what anomalib's own commands have no place for.

Example:
    >>> # anomalib-clipsam prompts > prompts.yaml                # the default ensemble, to be edited
    >>> # anomalib-clipsam prompts --prompts prompts.yaml        # check the file
    >>> # anomalib-clipsam prompts --class-name "metal nut"      # every sentence that CLIP is asked
    >>> # anomalib-clipsam weights list                          # what is here, sizes, licences
    >>> # anomalib-clipsam weights fetch vit_b --to FOLDER       # prepare a folder for a machine without a network
    >>> # anomalib-clipsam weights verify                        # compare what is here with the table
    >>> # anomalib-clipsam predictions FOLDER --to scores.csv    # score, label, mask area and boxes of each picture
    >>> # anomalib-clipsam compare --config compare.yaml         # anomalib's models side by side
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

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


def list_weights() -> str:
    """Write the table of weights.

    Returns:
        str: A line per row: name, role, the ``weights`` that use it, size, licence, and where it is on this machine.
    """
    from anomalib_clipsam.weights.store import find, folders
    from anomalib_clipsam.weights.table import WEIGHTS, all_rows

    lines = [("NAME", "ROLE", "WEIGHTS", "SIZE", "LICENCE", "HERE")]
    for name, row in all_rows().items():
        found = find(row)
        path, source = found or ("no", row.sources[0])
        used = ", ".join(pair for pair, files in WEIGHTS.items() if row in (files.clip, files.sam))
        size = "not known" if source.size is None else f"{source.size / 1e6:,.1f} MB"
        lines.append((name, row.role, used, size, row.licence, str(path)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    places = ", ".join(map(str, folders()))
    return "\n".join([*table, "", f"Looked for in {places}, and in the cache of the Hugging Face hub.", ""])


def fetch_weights(names: Sequence[str], folder: Path | None) -> str:
    """Bring weights to this machine, or into a folder that is carried to another.

    Args:
        names (Sequence[str]): Values of ``--model.weights`` such as ``"vit_b"``, or names of rows such as
            ``"sam_vit_b"``.
        folder (Path | None): Where to. ``None`` takes anomalib's folder of pretrained weights, and leaves alone what is
            anywhere here.

    Returns:
        str: A line per file.

    Raises:
        OSError: If a file cannot be had.
        ValueError: If a name is unknown, or a file that is here is another one.
    """
    from anomalib_clipsam.weights.store import WEIGHTS_VARIABLE, fetch, locate
    from anomalib_clipsam.weights.table import WEIGHTS, all_rows

    rows = all_rows()
    unknown = [name for name in names if name not in WEIGHTS and name not in rows]
    if unknown:
        msg = f"Unknown weights '{unknown[0]}'. Choose of {', '.join([*WEIGHTS, *rows])}."
        raise ValueError(msg)
    wanted = {}
    for name in names:
        for row in (WEIGHTS[name].clip, WEIGHTS[name].sam) if name in WEIGHTS else (rows[name],):
            wanted[row.name] = row
    lines = []
    for name, row in wanted.items():
        path = locate(row) if folder is None else fetch(row, folder)
        lines.append(f"{name}: {path}")
    if folder is not None:
        lines.append(f"On the other machine, set {WEIGHTS_VARIABLE} to the folder that this one is copied to.")
    return "\n".join([*lines, ""])


def verify_weights() -> tuple[str, bool]:
    """Compare every file of the table that is here with its size and SHA-256.

    Returns:
        tuple[str, bool]: A line per row, and whether all files that are here are sound.
    """
    from anomalib_clipsam.weights.store import check, find
    from anomalib_clipsam.weights.table import all_rows

    lines, sound = [], True
    for name, row in all_rows().items():
        found = find(row)
        if found is None:
            lines.append(f"{name}: not here")
            continue
        try:
            check(*found)
        except (OSError, ValueError) as error:
            lines.append(f"{name}: {error}")
            sound = False
        else:
            state = "not checked, its SHA-256 is not known" if found[1].sha256 is None else "sound"
            lines.append(f"{name}: {state}, {found[0]}")
    return "\n".join([*lines, ""]), sound


def predictions(folder: Path, table: Path, weights: str, class_name: str | None, checkpoint: Path | None) -> str:
    """Score the pictures of a folder with ClipSam, and write a table.

    Args:
        folder (Path): A picture, or a folder of pictures.
        table (Path): CSV file to write.
        weights (str): Value of ``--model.weights``.
        class_name (str | None): Name of the part in the text prompts.
        checkpoint (Path | None): Checkpoint with calibrated thresholds. ``None``: a threshold of 0.5.

    Returns:
        str: Where the table is.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If an argument is wrong, or no picture can be scored.
    """
    from anomalib.engine import Engine

    from anomalib_clipsam.lightning_model import ClipSam
    from anomalib_clipsam.results.prediction_table import PredictionTable

    model = ClipSam(weights=weights, class_name=class_name, visualizer=PredictionTable(table))
    with TemporaryDirectory() as workspace:
        engine = Engine(default_root_dir=workspace, logger=False, devices=1)
        engine.predict(model, data_path=folder, ckpt_path=checkpoint, return_predictions=False)
    return f"Wrote {table}.\n"


def compare(config: Path, output: Path | None) -> tuple[str, int]:
    """Compare models on data sets.

    Args:
        config (Path): Configuration file.
        output (Path | None): Folder of the results. ``None`` takes the file's.

    Returns:
        tuple[str, int]: The tables, and the exit code: 1 if a pair failed.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If the configuration is wrong.
    """
    from anomalib_clipsam.compare.config import read_config
    from anomalib_clipsam.compare.run import compare as run
    from anomalib_clipsam.compare.table import to_markdown

    comparison = read_config(config)
    if output is not None:
        comparison = replace(comparison, output=str(output))
    rows = run(comparison)
    return to_markdown(comparison, rows), int(any(row.error for row in rows))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line.

    Returns:
        argparse.ArgumentParser: Its result has ``run``, a function from the options to the text and the exit code.
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
    command.set_defaults(command=command, run=lambda options: (prompts(options.class_name, options.prompts), 0))

    weights = commands.add_parser("weights", help="list, fetch and verify weights").add_subparsers(required=True)
    command = weights.add_parser(
        "list", help="what is here, sizes, licences", description="Print the table of weights, and what of it is here."
    )
    command.set_defaults(command=command, run=lambda _options: (list_weights(), 0))
    command = weights.add_parser(
        "fetch",
        help="bring weights to this machine or into a folder",
        description="Bring weights to this machine, or into a folder for a machine without a network.",
    )
    command.add_argument("names", nargs="+", metavar="NAME", help="such as vit_b (CLIP and SAM) or sam_vit_b")
    command.add_argument("--to", type=Path, metavar="FOLDER", help="folder; anomalib's own if left out")
    command.set_defaults(command=command, run=lambda options: (fetch_weights(options.names, options.to), 0))
    command = weights.add_parser(
        "verify",
        help="compare what is here with the table",
        description="Compare every file that is here with its size and SHA-256. The exit code is 1 if one is damaged.",
    )

    def verify(_options: argparse.Namespace) -> tuple[str, int]:
        text, sound = verify_weights()
        return text, 0 if sound else 1

    command.set_defaults(command=command, run=verify)

    command = commands.add_parser(
        "predictions",
        help="a folder's scores, labels, mask areas and boxes as CSV",
        description="Score the pictures of a folder with ClipSam, and write a line per picture into a CSV file.",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="pictures without labels, or one picture")
    command.add_argument("--to", type=Path, required=True, metavar="FILE.csv", help="file to write")
    command.add_argument("--weights", default="vit_h", help="as --model.weights (default: vit_h)")
    command.add_argument("--class-name", metavar="NAME", help="name of the part in the text prompts")
    command.add_argument(
        "--checkpoint", type=Path, metavar="FILE.ckpt", help="thresholds that `anomalib test` has found"
    )
    command.set_defaults(
        command=command,
        run=lambda options: (
            predictions(options.folder, options.to, options.weights, options.class_name, options.checkpoint),
            0,
        ),
    )

    command = commands.add_parser(
        "compare",
        help="anomalib's models side by side",
        description="Compare models on data sets, and write tables and a report. A second call goes on where the first "
        "ended. The exit code is 1 if a model failed on a data set.",
    )
    command.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="models and data sets")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the results, in place of the file's")
    command.set_defaults(command=command, run=lambda options: compare(options.config, options.output))
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args (Sequence[str] | None): Arguments of the command line. Defaults to those of the process.
    """
    options = build_parser().parse_args(args)
    logging.getLogger("anomalib_clipsam").setLevel(logging.INFO)  # what is fetched from where
    try:
        text, code = options.run(options)
    except (OSError, ValueError) as error:
        options.command.exit(2, f"{options.command.prog}: {' '.join(str(error).split())}\n")
    print(text, end="")
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
