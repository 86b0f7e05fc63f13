from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

from sdr_lightning.configure import build
from sdr_lightning.configure.parser_errors import one_line

STUDENT = str(Path(__file__).parents[2] / "experiments" / "scenes" / "sdr.yaml")
MODEL, DATA = "--model.init_args", "--data.init_args"
ENCODER = f"{MODEL}.encoder.init_args"

# Deprecation warnings of the parser are not tested here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_message(*options: str) -> str:
    """Return the error of the scenes experiment with these options, which must be one line."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller checks the message)
        build(["--config", STUDENT, *options])
    assert "\n" not in str(error.value)
    return str(error.value)


UNKNOWN = [
    (f"{ENCODER}.embeding_width", "DualEncoder has no 'embeding_width'", "'embedding_width'"),
    (f"{ENCODER}.image_tower.init_args.nam", "TimmImageTower has no 'nam'", "'name'"),
    (f"{MODEL}.method.init_args.weigths", "SDR has no 'weigths'", "'weights'"),
    (f"{DATA}.source.init_args.num_trian", "SceneSource has no 'num_trian'", "'num_train'"),
    (f"{DATA}.imbalance.serverity", "serverity", "'severity'"),
    (f"{DATA}.imbalence.ratio", "imbalence", "'imbalance"),
    ("--trainer.max_epocs", "trainer.max_epocs", "'max_epochs'"),
    ("--tainer.max_epochs", "tainer.max_epochs", "'trainer"),
    ("--checkpoint.monitr", "checkpoint.monitr", "monitor'"),
]


@pytest.mark.parametrize(("option", "found", "nearest"), UNKNOWN)
def test_an_unknown_option_is_named_with_its_owner_and_a_suggestion(option: str, found: str, nearest: str) -> None:
    message = error_message(option, "3")
    assert len(message) < 200
    before, hint, after = message.partition("did you mean")
    assert hint
    assert found in before
    assert nearest in after


def test_all_names_are_listed_if_none_is_similar() -> None:
    message = error_message(f"{DATA}.source.init_args.zzz", "3")
    assert "SceneSource has no 'zzz'; expected one of seed, num_train, num_val, num_test, size, max_objects" in message


def test_unknown_keys_of_files_and_mappings_are_named(tmp_path: Path) -> None:
    expected = "Imbalance has no 'ration'; did you mean 'ratio'?"
    assert expected in error_message(f"{DATA}.imbalance", "{kind: mismatch, ration: 0.5}")
    path = tmp_path / "more.yaml"
    path.write_text("data:\n  init_args:\n    imbalance: {kind: mismatch, ration: 0.5}\n")
    assert expected in error_message("--config", str(path))
    path.write_text("model:\n  init_args:\n    encoder:\n      init_args: {hiden_width: 3}\n")
    message = error_message("--config", str(path))
    assert "'hiden_width'" in message
    assert "'hidden_width'" in message


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        (f"{DATA}.augmentation", "stong", ("stong", "weak")),
        ("--trainer.max_epochs", "many", ("max_epochs", "many")),
        ("--config", "/nowhere/student.yaml", ("/nowhere/student.yaml",)),
        (f"{DATA}.source.class_path", "sdr_lightning.data.SceneSorce", ("SceneSorce",)),
        (f"{DATA}.imbalance.kind", "mismach", ("mismach", "mismatch")),
        (f"{DATA}.imbalance.modality", "video", ("modality: expected one of 'image', 'text', 'pair', got 'video'",)),
        (f"{DATA}.source.init_args.num_train", "many", ("num_train: expected int, got 'many'",)),
        (f"{DATA}.train_on", "foo", ("train_on: expected a list, got 'foo'",)),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_expected_type(
    option: str, value: str, parts: tuple[str, ...]
) -> None:
    message = error_message(option, value)
    assert all(part in message for part in parts)


def test_errors_of_classes_are_passed_on() -> None:
    for option, value, expected in (
        (f"{DATA}.imbalance", "{kind: mismatch, ratio: 1.5}", "the imbalance ratio must lie in [0, 1], got 1.5"),
        (f"{DATA}.batch_size", "1", "the batch size must be at least 2, a contrast needs a negative; got 1"),
        (f"{DATA}.source.init_args.num_train", "0", "scenes need positive numbers, got 0, 200, 300, size 32"),
        (f"{MODEL}.method.init_args.weights", "{itc: 1, kdx: 2}", "unknown term 'kdx' in weights"),
    ):
        message = error_message(option, value)
        assert message.startswith(expected)
        assert len(message) < 200
    message = error_message(f"{DATA}.imbalance", "[{kind: mismatch, ratio: 0.5}, {kind: typos, ratio: 2}]")
    assert "the imbalance ratio must lie in [0, 1], got 2" in message


def test_a_run_folder_that_cannot_be_created_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = error_message("--run_dir", str(tmp_path / "file/run"))
    assert message == f"nothing can be written to file/run: {tmp_path}/file is a file; choose another folder"


def test_one_line_keeps_plain_messages_and_finds_the_innermost_cause() -> None:
    plain = "the folder runs/a already holds a run: choose another"
    assert one_line(plain) == plain
    assert one_line("Subcommand 'fit' does not accept option 'trainer.max_epoch'") == (
        "there is no option 'trainer.max_epoch'; did you mean 'max_epochs' or 'min_epochs'?"
    )
    nested = (
        "Does not validate against any of the Union subtypes\n"
        "Subtypes: [<class 'a.B'>, <class 'NoneType'>]\n"
        "Errors:\n"
        "  - a cause further out\n"
        "  - the batch size must be at least 2, got 1\n"
        "  - Expected a <class 'NoneType'>\n"
        "Given value type: <class 'jsonargparse._namespace.Namespace'>\n"
        "Given value: Namespace(class_path='a.B')"
    )
    assert one_line(nested) == "the batch size must be at least 2, got 1"


def test_an_error_in_a_worker_process_is_its_message() -> None:
    try:
        try:
            raise FileNotFoundError("no such file")
        except FileNotFoundError as cause:
            raise ValueError("no shard at x.tar: copy it again") from cause
    except ValueError:
        caught = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker process 0") as error:
        caught.reraise()
    assert one_line(str(error.value)) == "no shard at x.tar: copy it again"
