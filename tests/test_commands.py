"""The help of the commands: complete without anything heavy, and true."""

import json
import os
import signal
import subprocess
import sys
from typing import get_args

import pytest

from sdr_lightning.cleaning import duplicates, judgement
from sdr_lightning.cli import choices
from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS
from sdr_lightning.cli.main import main
from sdr_lightning.data.imbalance import KINDS, PARTNERS
from sdr_lightning.data.table import SPLITS
from sdr_lightning.functional.agreement import Level
from sdr_lightning.functional.ranking import Ties
from sdr_lightning.metrics.graded import Siblings
from sdr_lightning.metrics.relevance import Tokenizer
from sdr_lightning.retrieval.index import Within

NESTED = {command: SUBCOMMANDS[command] for command in ("data", "noise")}
WORDS = ["--help", "completion bash"]
WORDS += [f"{command} --help" for command in COMMANDS]
WORDS += [f"{command} {name} --help" for command, names in NESTED.items() for name in names]
HEAVY = {"torch", "lightning", "transformers", "timm", "sklearn", "scipy", "numpy", "matplotlib"}
CODE = """
import contextlib, io, json, sys
known, found = set(), {}
from sdr_lightning.cli.main import main
for words in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(words.split())
    found[words] = text.getvalue(), sorted(sys.modules.keys() - known)
    known |= sys.modules.keys()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def printed() -> dict[str, tuple[str, list[str]]]:
    """What each command line prints, and the modules that it is the first to import."""
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(WORDS)], capture_output=True, text=True, check=True)
    found: dict[str, tuple[str, list[str]]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("words", WORDS)
def test_help_imports_nothing_heavy(words: str, printed: dict[str, tuple[str, list[str]]]) -> None:
    text, modules = printed[words]
    assert not HEAVY & {name.partition(".")[0] for name in modules}
    assert len(text.splitlines()) > 2
    if words == "--help":
        assert any(line.startswith("  reproduce STUDY.yaml ") for line in text.splitlines())
        assert max(map(len, text.splitlines())) <= 80
    elif words.endswith("--help"):
        assert text.startswith(f"usage: sdr {words.removesuffix(' --help')} ")


@pytest.mark.parametrize(("command", "unbuffered"), [("--help", "1"), ("runs --help", ""), ("completion bash", "")])
def test_a_closed_pipe_ends_the_command_without_a_message(command: str, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "sdr_lightning", *command.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "command", ["evaluate", "clean --data a --output b", "index a", "extract --config a --teacher b --output c"]
)
def test_an_unknown_device_is_refused_before_the_work(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--device", "gpu"])
    assert "argument --device: 'gpu' cannot be used: Expected one of cpu, cuda" in capsys.readouterr().err


def test_the_values_that_parsers_state_are_those_that_are_accepted() -> None:
    assert choices.SPLITS == SPLITS
    assert tuple(kind for kind in KINDS if kind != "none") == choices.KINDS
    assert tuple(PARTNERS) == choices.PARTNERS
    assert get_args(Level) == choices.LEVELS
    assert get_args(Ties) == choices.TIES
    assert get_args(Siblings) == choices.SIBLINGS
    assert get_args(Tokenizer) == choices.TOKENIZERS
    assert get_args(Within) == choices.WITHIN
    assert tuple(judgement.REMOVABLE) == choices.REMOVABLE
    assert choices.NEAR_COSINE == duplicates.NEAR_COSINE
