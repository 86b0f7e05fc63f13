"""Entry point of ``sdr``. The modules of a command are imported when it runs."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

from sdr_lightning import __version__

HELP = """usage: sdr COMMAND [options]

Image-text retrieval when one modality is poor: train, compare methods, clean pairs, search.

Training and evaluation (every key of a YAML file is also an option; COMMAND --help lists them):
  sdr fit       --config FILE [--run_dir DIR]              train a student or a teacher
  sdr validate  --config FILE --ckpt_path FILE             compute recall on the validation split
  sdr test      --config FILE --ckpt_path FILE             compute all metrics on the test split
  sdr evaluate  --image-embeddings NPY --text-embeddings NPY --annotations FILE --output metrics.json
                                                           compute all metrics of any model from embeddings or scores
  sdr evaluate  --model MODEL --data FILE                  compute all metrics of a trained model on a test split
  sdr relevance --annotations FILE --output NPY            compute graded relevance of captions and images (ROUGE-L)
  sdr extract   --config FILE --teacher FILE --output FILE write the features of a teacher
  sdr import-checkpoint FILE --from public-sdr --config FILE --output FILE
                                                           convert weights of the authors' public code

Use of a trained model:
  sdr index     MODEL --images FOLDER | --data FILE --output INDEX
                                                           embed images and captions to search in; resumes if interrupted
  sdr index     INDEX --add FOLDER | --remove ID ...       update an index
  sdr search    INDEX "words" | --image FILE               search in images, captions or both
  sdr serve     INDEX [--port PORT]                        search on a page, and through a JSON interface
  sdr export    RUN --output DIR [--format onnx]           write a folder that stands alone: weights, tokenizer, model card
  sdr push      DIR USER/NAME                              upload such a folder to the hub

Data and corruption:
  sdr data check   --data FILE                             check a data set for errors
  sdr data prepare --data FILE                             cache decoded images and tokens; resumes if interrupted
  sdr data shard   --data FILE --output DIR [--teachers BANK ...]
                                                           write webdataset shards to stream from; resumes if interrupted
  sdr clean     --data FILE --output FOLDER                find wrong pairs, duplicates, leakage and empty captions
  sdr noise make   --data FILE --kind KIND --ratio R ...   choose the items of a corruption, and write them to a file
  sdr noise show   FILE                                    describe a noise table or a published index

Studies:
  sdr reproduce STUDY.yaml [--dry_run] [--jobs N]          run teachers, all cells and the report; resumes if interrupted
  sdr sweep     SWEEP.yaml [--jobs N] [--resume]           run the sweep of a W&B sweep file on this machine
  sdr runs      [FOLDER] [--where OPTION=VALUE]            list, filter and compare runs
  sdr report    FOLDER                                     write the report of a study or sweep, or the curves of a run
  sdr report    metrics.json metrics.json ...              compare evaluations, with confidence intervals
  sdr report    FOLDER FOLDER ... --output FOLDER          write the leaderboard of several studies, and of evaluations
  sdr bench     evaluate | data | losses | training | processes | detection | search | shards
                                                           measure the speed claims on this machine

  sdr --version | --help
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: command and options; ``sys.argv`` if None.

    Returns:
        Exit status: 0 on success, 1 on failure, 2 on invalid arguments or input, 130 on interruption.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"sdr_lightning {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        near = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"sdr: unknown command {arguments[0]!r}{hint} (commands: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    try:
        if arguments[0] in _LIGHTNING:
            return _lightning(arguments)
        module = import_module(f"sdr_lightning.cli.{arguments[0].replace('-', '_')}")
        return int(module.run(arguments[1:]))
    except KeyboardInterrupt:
        print("sdr: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("SDR_TRACEBACK"):
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"cannot use {error.filename}: {error.strerror}"
        if message.startswith("Caught "):  # an error in a worker includes its traceback
            message = message.rpartition("Error: ")[2]
        print(f"sdr {arguments[0]}: error: {' '.join(message.split())}", file=sys.stderr)
        print("(set SDR_TRACEBACK=1 for the traceback)", file=sys.stderr)
        return 2


def _lightning(arguments: list[str]) -> int:
    from sdr_lightning.configure.help import help_text, is_help

    if is_help(arguments):
        print(help_text(arguments[0], arguments[1:]))
        return 0
    from sdr_lightning.configure import run
    from sdr_lightning.reporting.wandb_summary import publish

    publish(run(arguments))
    return 0


COMMANDS = (
    *("fit", "validate", "test", "evaluate", "relevance", "extract", "import-checkpoint", "export", "push"),
    *("index", "search", "serve", "clean"),
    *("data", "noise", "reproduce", "sweep", "runs", "report", "bench"),
)
_LIGHTNING = ("fit", "validate", "test")
