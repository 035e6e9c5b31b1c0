"""g4seg-refine: refine the masks of one image, or of a folder of images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from g4seg_trt.class_table import DATASETS
from g4seg_trt.cli.common import new_parser, run
from g4seg_trt.cli.options import add_engine_options, add_setting_options, given_for_refinement, shard

DESCRIPTION = (
    "Refine coarse segmentation masks. One image: --image, --mask, --class-name, --output. "
    "A folder: --images, --masks, --output."
)

_ONE_IMAGE = ("mask", "label")
_FOLDER = ("masks", "classes", "list", "shard", "limit", "compare", "report", "ray", "workers")
_PICTURES = ("overlay", "matches")


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = new_parser("g4seg-refine", DESCRIPTION)
    add_engine_options(parser)
    group = parser.add_argument_group("inputs")
    add = group.add_argument
    add("--image", metavar="FILE", help="one image")
    add("--images", metavar="DIR", help="a folder of images")
    add(
        "--mask",
        metavar="FILE|NAME=FILE",
        action="append",
        help="coarse mask, of any format; one that does not say its class needs --class-name, or NAME=FILE for each "
        "class (.png, .npy, .npz)",
    )
    add(
        "--masks",
        metavar="DIR|FILE",
        help="their masks: STEM.png, STEM.npy, STEM.npz or STEM/CLASS.png of any format, or a file of all images",
    )
    add("--class-name", metavar="NAME", help="what the mask shows, in words; in a folder, for every image")
    add("--classes", metavar="FILE", help="a JSON file {stem: class name or list of class names}")
    add(
        "--ground-truth",
        metavar="PATH",
        help="true mask (a folder of them for --images): print IoU before and after",
    )
    add(
        "--format",
        metavar="NAME",
        help="the format of the masks, if it cannot be told from their content; a wrong name lists them all",
    )
    add(
        "--dataset",
        choices=DATASETS,
        help="the data set whose class names and ids the masks have; labels then hold its ids",
    )
    add("--class-table", metavar="FILE", help="the same for classes of one's own (.json or .txt)")
    group = parser.add_argument_group("outputs")
    add = group.add_argument
    add(
        "--output",
        metavar="PATH",
        required=True,
        help="refined probability: .png (16 bit, one class), .npz, or with the mask's suffix in its own format; a "
        "folder for --images",
    )
    add(
        "--label",
        metavar="FILE",
        help="label picture: 0/255 for one class, else 0 background, 1.. the classes",
    )
    add(
        "--overlay",
        metavar="FILE",
        nargs="?",
        const=True,
        help="picture before | after; without FILE for --images, which get OUTPUT/overlay/STEM.png",
    )
    add(
        "--matches",
        metavar="FILE",
        nargs="?",
        const=True,
        help="picture original | generated with lines from uncertain positions to what they resemble most; "
        "without FILE for --images, which get OUTPUT/matches/STEM.png",
    )
    add(
        "--post",
        metavar="NAME[,NAME]",
        help="post-processing of the refined masks, in this order: crf, crf:clip-es, crf:psa, crf:irn, pamr, "
        "cascadepsp, cascadepsp:fast",
    )
    add(
        "--no-refine",
        action="store_true",
        help="leave the masks as they are, for --post or --compare alone as a baseline; needs no engine",
    )
    add("--json", metavar="FILE|-", help="report: settings, seconds by stage, areas, changed pixels, IoU")
    add(
        "--background",
        metavar="RULE",
        help="how labels are decided, and with them where each class is injected: constant:T, power:P, or channel "
        "(a mask of the class background) (default: the masks' own rule if they bring one, else constant:0.5)",
    )
    _add_run_options(parser)
    add_setting_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("folders", "What --images may have beside.")
    add = group.add_argument
    add("--list", metavar="FILE", help="the images wanted: a stem, or a path that ends in its file, on each line")
    add(
        "--resume",
        action="store_true",
        help="go on in an output folder that holds results: what is recorded there with the same image, masks, "
        "settings and engine is skipped, all else is done again",
    )
    add("--limit", type=int, metavar="N", help="only the first N images")
    add(
        "--shard",
        type=shard,
        metavar="I/N",
        help="only every N-th image from the I-th on; N such runs of the same settings share an output folder",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="local",
        help="refine with a pool of workers on Ray: on this machine or, with the ADDRESS auto or HOST:PORT, on the "
        "cluster that it belongs to, whose machines need inputs, engine and output under the same paths",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="workers of --ray, with --threads each (default: one on each GPU, or up to 4 CPU threads each and as many "
        "as there is room for)",
    )
    add(
        "--compare",
        metavar="NAME[,NAME]",
        help="with --ground-truth: a table of the coarse masks, the refined ones, and both after this post-processing "
        "(see --post), of which nothing is written",
    )
    add(
        "--report",
        metavar="FILE",
        nargs="?",
        const=True,
        help="one HTML page with figures and pictures (default: OUTPUT/report.html, of a shard report-I-of-N.html)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(build_parser(), execute, argv)


def execute(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Check which of the two modes is meant and run it."""
    if (arguments.image is None) == (arguments.images is None):
        parser.error("give either --image (one image) or --images (a folder)")
    one = arguments.image is not None
    for name in _FOLDER if one else _ONE_IMAGE:
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} goes with {'--images' if one else '--image'}")
    if one and arguments.resume:
        parser.error("--resume goes with --images")
    if arguments.dataset is not None and arguments.class_table is not None:
        parser.error("give either --dataset or --class-table")
    _check_steps(parser, arguments)
    # Imported here: numpy and Pillow would delay --help and --version.
    if one:
        if arguments.mask is None:
            parser.error("--image needs --mask")
        for name in _PICTURES:
            if getattr(arguments, name) is True:
                parser.error(f"--{name} needs a FILE with --image")
        _check_mask_options(parser, arguments)
        from g4seg_trt.cli.single import refine_image

        return refine_image(arguments)
    if arguments.masks is None:
        parser.error("--images needs --masks")
    for name in _PICTURES:
        if getattr(arguments, name) not in (None, True):
            parser.error(f"--{name} takes no FILE with --images: pictures go to OUTPUT/{name}")
    if arguments.class_name is not None and arguments.classes is not None:
        parser.error("give either --class-name or --classes")
    if getattr(arguments, "resolution", None) != "pixel":
        # numpy's own threads spin while they wait, and so take the cores from networks and writing; only the search
        # between pixels has work for them. It reads this when it is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from g4seg_trt.cli.folder import refine_folder

    return refine_folder(arguments)


def _check_steps(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What is done to the masks, and what each of it needs."""
    if arguments.no_refine:
        if arguments.post is None and arguments.compare is None:
            others = "--post" if arguments.image is not None else "--post or --compare"
            parser.error(f"--no-refine goes with {others}: nothing else is left to do")
        if arguments.matches is not None:
            parser.error("--matches shows what a refinement matched: leave out --no-refine")
        if arguments.ray is not None:
            parser.error("--ray refines on many workers: leave out --no-refine")
        if given := given_for_refinement(parser, arguments):
            parser.error(f"--no-refine leaves nothing to do for {', '.join(given)}: leave out one or the other")
    elif arguments.engine is None:
        parser.error("the following arguments are required: --engine")
    if arguments.workers is not None and arguments.ray is None:
        parser.error("--workers goes with --ray")
    if arguments.compare is not None:
        if arguments.ground_truth is None:
            parser.error("--compare goes with --ground-truth")
        if arguments.post is not None:
            parser.error("give either --post or --compare: what is compared is the masks before and after it")


def _check_mask_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if len(arguments.mask) == 1 and (arguments.class_name is not None or "=" not in arguments.mask[0]):
        return
    if arguments.class_name is not None:
        parser.error("--class-name takes one --mask; for several classes give --mask NAME=FILE for each")
    if arguments.format is not None:
        parser.error("--format goes with a single --mask FILE")
    for mask in arguments.mask:
        if "=" not in mask:
            parser.error(f"--mask {mask}: beside others it is NAME=FILE")
