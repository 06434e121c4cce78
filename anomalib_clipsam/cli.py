# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam``: what anomalib's own commands have no place for.

A function per command: it adds the command's options and gives what the command runs. What is run stands in the rooms,
which are imported only then, so that ``--help`` answers at once.

Example:
    >>> # anomalib-clipsam prompts > prompts.yaml                # the default ensemble, to be edited
    >>> # anomalib-clipsam prompts --prompts prompts.yaml        # check the file
    >>> # anomalib-clipsam prompts --class-name "metal nut"      # every sentence that CLIP is asked
    >>> # anomalib-clipsam weights list                          # what is here, sizes, licences
    >>> # anomalib-clipsam weights fetch vit_b --to FOLDER       # prepare a folder for a machine without a network
    >>> # anomalib-clipsam weights verify                        # compare what is here with the table
    >>> # anomalib-clipsam predictions FOLDER --to out           # tables, masks, JSON lines and COCO of a folder
    >>> # anomalib-clipsam predictions FOLDER --to scores.csv --good GOOD    # one table; compared with a few good parts
    >>> # anomalib-clipsam check DATA                            # verdicts and outlines against labels
    >>> # anomalib-clipsam compare --config compare.yaml         # anomalib's models side by side
    >>> # anomalib-clipsam app                                   # a picture at a time, in a browser
"""

import logging
import sys
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomalib_clipsam import __version__
from anomalib_clipsam.errors.command_line import ToStderr, find_advice, only_our_lines, sentence
from anomalib_clipsam.errors.errors import UserValueError

Run = Callable[[Namespace], tuple[str, int]]
"""From the options to the text that is printed and the exit code."""

TILES = "for large pictures: side of the tiles that they are cut into, or 'auto'"


DECISIVE = (
    "weights",
    "class_name",
    "checkpoint",
    "threshold",
    "pixel_threshold",
    "false_alarms",
    "min_area",
    "good",
    "references",
    "tiles",
    "pictures",
)
"""Options of `predictions` that change what it writes."""


def tile_side(text: str) -> int | str:
    """Read what ``--tiles`` is given: a number of pixels; ``"auto"``, and what the model will refuse, stay as text."""
    return int(text) if text.isdigit() else text


def prompts(command: ArgumentParser) -> Run:
    """Print the prompt ensemble as a file for `--model.prompts`, or, with a class name, every sentence."""
    command.add_argument("--class-name", metavar="NAME", help="put this name into every sentence")
    command.add_argument("--prompts", metavar="FILE.yaml", help="prompt file; the default ensemble if left out")

    def run(options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.clip.prompts import PromptEnsemble

        ensemble = PromptEnsemble() if options.prompts is None else PromptEnsemble.from_file(options.prompts)
        return ensemble.to_yaml(options.class_name), 0

    return run


def list_weights(command: ArgumentParser) -> Run:
    """Print the table of weights, and what of it is here."""
    del command

    def run(_options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.weights.inventory import list_weights

        return list_weights(), 0

    return run


def fetch_weights(command: ArgumentParser) -> Run:
    """Bring weights to this machine, or into a folder for a machine without a network."""
    command.add_argument("names", nargs="+", metavar="NAME", help="such as vit_b (CLIP and SAM) or sam_vit_b")
    command.add_argument("--to", type=Path, metavar="FOLDER", help="folder; anomalib's own if left out")

    def run(options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.weights.inventory import fetch_weights

        return fetch_weights(options.names, options.to), 0

    return run


def verify_weights(command: ArgumentParser) -> Run:
    """Compare every file that is here with its size and hash. The exit code is 1 if one is damaged."""
    del command

    def run(_options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.weights.inventory import verify_weights

        text, sound = verify_weights()
        return text, 0 if sound else 1

    return run


def add_model(command: ArgumentParser) -> None:
    """Add the options that say which model, and what pictures are compared with."""
    model = command.add_argument_group("the model")
    model.add_argument(
        "--weights",
        default="vit_b",
        help="lite: carried by the package, fast; mobile: 0.6 GB to fetch; vit_b, vit_l, vit_h: 2.1 GB and more "
        "(default: vit_b)",
    )
    model.add_argument(
        "--class-name",
        metavar="NAME",
        help="name of the part, such as 'metal nut'; 'folder' for that of each picture's folder, or a YAML file of "
        "folders and names",
    )
    compared = model.add_mutually_exclusive_group()
    compared.add_argument(
        "--good", type=Path, metavar="FOLDER", help="good parts to compare with, the first 8; they set the thresholds"
    )
    compared.add_argument(
        "--references",
        choices=("none", "self", "batch"),
        help="compare each picture with itself, or with all of the folder, five or more (default: as the weights say)",
    )
    model.add_argument("--tiles", type=tile_side, metavar="PIXELS", help=TILES)


def add_decision(command: ArgumentParser) -> _ArgumentGroup:
    """Add the options that say what is defective; more of them may be added to what is given."""
    decision = command.add_argument_group("what is defective")
    decision.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="score, as in the table, above which a picture is defective (default: 0.5)",
    )
    decision.add_argument(
        "--pixel-threshold",
        type=float,
        metavar="VALUE",
        help="value of the map above which a pixel is outlined; a lower one makes outlines grow (default: 0.5)",
    )
    decision.add_argument(
        "--false-alarms",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="wished share of good pictures that are called defective; good parts and a batch set the threshold for it "
        "(default: 0.2)",
    )
    return decision


def read_decision(options: Namespace) -> dict[str, float]:
    """Read thresholds as sensitivities: the score in the table stays, so that a threshold can be read off it."""
    moved = {}
    for name, level in (("threshold", "image"), ("pixel_threshold", "pixel")):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            what = "The threshold" if level == "image" else "The pixel threshold"
            msg = f"{what} is {value}, but scores and maps lie between 0 and 1. Choose a number there."
            raise UserValueError(msg)
        if value is not None:
            moved[f"{level}_sensitivity"] = 1 - value
    return moved


def compare_as(options: Namespace) -> dict[str, Any]:
    """Read what pictures are compared with: as the options say, else as a checkpoint was made."""
    from anomalib_clipsam.plugin.checkpoint import read_compared
    from anomalib_clipsam.predictions.run import count_good_parts

    if options.good is not None:
        return {"k_shot": count_good_parts(options.good), "few_shot_source": str(options.good)}
    if options.references is None and options.checkpoint is not None:
        return read_compared(options.checkpoint)
    return {"references": options.references}


def predictions(command: ArgumentParser) -> Run:
    """Score the pictures of a folder with ClipSam, and write tables, masks, JSON lines and COCO into a folder.

    The same command goes on with a run that was stopped. With `--to FILE.csv` there is one table only.
    """
    command.add_argument("folder", type=Path, metavar="FOLDER", help="pictures without labels, or one picture")
    command.add_argument(
        "--to", type=Path, required=True, metavar="RESULTS", help="folder to write, or a file that ends in .csv"
    )
    command.add_argument("--pictures", action="store_true", help="draw each picture with map, outline and verdict, too")
    command.add_argument("--quiet", action="store_true", help="no progress bar, and the last line only")

    add_model(command)

    decision = add_decision(command)
    decision.add_argument(
        "--checkpoint", type=Path, metavar="FILE.ckpt", help="thresholds that `anomalib test` has found"
    )
    decision.add_argument(
        "--min-area",
        type=int,
        default=0,
        metavar="PIXELS",
        help="smallest part of a mask that stays, in pixels of the file (default: any)",
    )

    add_machine(command)
    return run_predictions


def add_machine(command: ArgumentParser) -> None:
    """Add the options that say on which devices it runs."""
    machine = command.add_argument_group("the machine")
    machine.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at once (default: 1)")
    machine.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, gpu and so on (default: auto)")
    machine.add_argument("--devices", default="1", metavar="N", help="how many, or which (default: 1)")
    machine.add_argument("--num-nodes", type=int, default=1, metavar="N", help="machines of a cluster (default: 1)")


@only_our_lines()
def run_predictions(options: Namespace) -> tuple[str, int]:
    """Score a folder, as `predictions` was asked."""
    from anomalib_clipsam import ClipSam
    from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
    from anomalib_clipsam.predictions.run import check_trainer, list_pictures, write_predictions

    list_pictures(options.folder)  # before anything is fetched
    moved = read_decision(options)
    if options.batch_size < 1:
        msg = f"The batch size is {options.batch_size}, but it is a number of pictures. Choose 1 or more."
        raise UserValueError(msg)
    needs_folder = options.pictures or options.devices != "1" or options.num_nodes != 1
    if needs_folder and options.to.suffix == ".csv":
        msg = f"{options.to} is a table only. Give --to a folder for pictures, and for several processes."
        raise UserValueError(msg)
    if options.quiet:
        logging.getLogger("anomalib_clipsam").setLevel(logging.WARNING)
    trainer = {name: getattr(options, name) for name in ("accelerator", "devices", "num_nodes")}
    check_trainer(**trainer)
    model = ClipSam(
        weights=options.weights,
        class_name=options.class_name,
        tiles=options.tiles,
        false_alarms=options.false_alarms,
        **compare_as(options),
        post_processor=ClipSamPostProcessor(min_area=options.min_area, **moved),
    )
    found = write_predictions(
        model,
        options.folder,
        options.to,
        options.checkpoint,
        settings_of(options, model.frozen_weights()),
        pictures=options.pictures,
        batch_size=options.batch_size,
        quiet=options.quiet,
        **trainer,
    )
    return found and f"{found}\n", 0


def settings_of(options: Namespace, weights: dict[str, dict[str, str]]) -> dict[str, str | None]:
    """List what predictions depend on: a folder that was begun with others is refused."""
    from anomalib_clipsam.predictions.run import hash_content

    settings = {"version": __version__, "folder": str(options.folder.resolve())}
    settings |= {f"--{name.replace('_', '-')}": str(getattr(options, name)) for name in DECISIVE}
    settings |= {f"weights of {part}": row["sha256"][:16] for part, row in weights.items()}
    for name in ("class_name", "checkpoint", "good"):
        path = Path(getattr(options, name) or "")
        if getattr(options, name) is not None and path.exists():
            settings[f"content of --{name.replace('_', '-')}"] = hash_content(path)
    return settings


def check(command: ArgumentParser) -> Run:
    """Compare verdicts and outlines with labels, and print what is missed, false alarms and outlines' F1.

    The folder has the layout of MVTec AD: `train/good`, `test/good`, `test/KIND`, and `ground_truth/KIND` with a mask
    for each defective picture, NAME_mask.png. Without `--good` and `--references`, pictures are compared with the
    first good parts of `train/good`, if there are any.
    """
    command.add_argument("folder", type=Path, metavar="DATA", help="labelled pictures")
    add_model(command)
    command.add_argument(
        "--good-parts", type=int, default=8, metavar="N", help="how many of train/good are taken (default: 8)"
    )
    add_decision(command)

    @only_our_lines()
    def run(options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam import ClipSam
        from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
        from anomalib_clipsam.predictions.check import check, to_markdown
        from anomalib_clipsam.predictions.run import count_good_parts

        moved = read_decision(options)
        options.checkpoint, train = None, options.folder / "train" / "good"
        if options.good is None and options.references is None and train.is_dir() and options.good_parts > 0:
            number = min(options.good_parts, count_good_parts(train))
            compared = {"k_shot": number, "few_shot_source": str(train)}
        else:
            compared = compare_as(options)
        model = ClipSam(
            weights=options.weights,
            class_name=options.class_name,
            tiles=options.tiles,
            false_alarms=options.false_alarms,
            **compared,
            post_processor=ClipSamPostProcessor(**moved),
        )
        return to_markdown([(options.folder.name, check(model, options.folder))]), 0

    return run


def compare(command: ArgumentParser) -> Run:
    """Compare models on data sets, and write tables and a report.

    A second call goes on where the first ended. The exit code is 1 if a model failed on a data set.
    """
    command.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="models and data sets")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the results, in place of the file's")

    def run(options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.compare.config import read_config
        from anomalib_clipsam.compare.run import compare
        from anomalib_clipsam.compare.table import to_markdown

        comparison = read_config(options.config)
        if options.output is not None:
            comparison = replace(comparison, output=str(options.output))
        rows = compare(comparison)
        page = f"\nThe page: {Path(comparison.output) / 'report.html'}\n"
        return to_markdown(comparison, rows) + page, int(any(row.error for row in rows))

    return run


def app(command: ArgumentParser) -> Run:
    """Try ClipSam in a browser: drop a picture; see verdict, outline, map and points. Pictures stay on this machine."""
    command.add_argument(
        "--weights", default="lite", help="lite, which the package carries, mobile, vit_b and so on (default: lite)"
    )
    command.add_argument("--tiles", type=tile_side, metavar="PIXELS", help=TILES)
    command.add_argument(
        "--false-alarms",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="wished share of good pictures that are called defective, beside good parts (default: 0.2)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, for this machine only)"
    )
    command.add_argument("--port", type=int, default=7860, help="port; 0 for any that is free (default: 7860)")

    @only_our_lines()
    def run(options: Namespace) -> tuple[str, int]:
        from anomalib_clipsam.app.page import serve

        serve(options.weights, options.host, options.port, options.tiles, options.false_alarms)
        return "", 0

    return run


COMMANDS = {
    "predictions": (predictions, "find defects in a folder of pictures: tables, masks, boxes, drawings"),
    "check": (check, "measure verdicts and outlines on labelled pictures"),
    "app": (app, "try it on a picture, in a browser"),
    "compare": (compare, "anomalib's models side by side"),
    "weights list": (list_weights, "what is here, sizes, licences"),
    "weights fetch": (fetch_weights, "bring weights to this machine or into a folder"),
    "weights verify": (verify_weights, "compare what is here with the table"),
    "prompts": (prompts, "print the text prompts"),
}
"""Words of the command -> the function that makes it, and what `--help` says of it."""
GROUPS = {"weights": "list, fetch and verify weights"}
FIRST = "To begin: anomalib-clipsam predictions FOLDER --weights lite --to results --pictures"


def build_parser() -> ArgumentParser:
    """Build the command line.

    Returns:
        ArgumentParser: Its result has ``run``, a function from the options to the text and the exit code.
    """
    parser = ArgumentParser(
        prog="anomalib-clipsam",
        description="ClipSam finds and outlines defects without training. It is a model of anomalib, too.",
        epilog=FIRST,
    )
    parser.add_argument("--version", action="version", version=__version__)
    places = {"": parser.add_subparsers(title="commands", required=True)}
    for words, (make, says) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        if group not in places:
            made = places[""].add_parser(group, help=GROUPS[group], description=f"{GROUPS[group].capitalize()}.")
            places[group] = made.add_subparsers(title="commands", required=True)
        description = " ".join((make.__doc__ or "").split())
        command = places[group].add_parser(name, help=says, description=description)
        command.set_defaults(command=command, run=make(command))
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args (Sequence[str] | None): Arguments of the command line. Defaults to those of the process.
    """
    args = sys.argv[1:] if args is None else args
    parser = build_parser()
    if not args:
        parser.print_help()
        sys.exit(2)
    options = parser.parse_args(args)
    logging.basicConfig(format="%(message)s", handlers=[ToStderr()])
    logging.getLogger("anomalib_clipsam").setLevel(logging.INFO)  # what is fetched from where
    try:
        text, code = options.run(options)
    except (OSError, ValueError, ImportError) as error:
        flags = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
        said, advice = sentence(error, flags), find_advice(error)
        said = said if advice is None else f"{said.rstrip('.')}. {advice}"
        options.command.exit(2, f"{options.command.prog}: {said}\n")
    print(text, end="")
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
