from pathlib import Path

import pytest

from sdr_lightning.configure import build
from sdr_lightning.configure.parser_errors import one_line

STUDENT = str(Path(__file__).parents[2] / "experiments" / "scenes" / "sdr.yaml")
MODEL, DATA = "--model.init_args", "--data.init_args"
ENCODER = f"{MODEL}.encoder.init_args"

# The parser's own deprecations are no business of these tests.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def complaint(*options: str) -> str:
    """What is said about the student of the scenes with these options."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller looks at the message)
        build(["--config", STUDENT, *options])
    return str(error.value)


@pytest.mark.parametrize(
    ("option", "found", "nearest"),
    [
        (f"{ENCODER}.embeding_width", "embeding_width", "embedding_width"),
        (f"{ENCODER}.image_tower.init_args.nam", "nam", "name"),
        (f"{ENCODER}.text_tower.init_args.weihgts", "weihgts", "weights"),
        (f"{MODEL}.method.init_args.weigths", "weigths", "weights"),
        (f"{MODEL}.optimisation.init_args.learning_rte", "learning_rte", "learning_rate"),
        (f"{DATA}.batch_sise", "batch_sise", "batch_size"),
        (f"{DATA}.source.init_args.num_trian", "num_trian", "num_train"),
        (f"{DATA}.imbalance.serverity", "serverity", "severity"),
        ("--trainer.max_epocs", "trainer.max_epocs", "max_epochs"),
        ("--sed_everything", "sed_everything", "seed_everything"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_right_one(option: str, found: str, nearest: str) -> None:
    message = complaint(option, "3")
    assert "\n" not in message
    assert len(message) < 200
    before, hint, after = message.partition("did you mean")
    assert hint
    assert found in before
    assert f"'{nearest}'" in after


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--tainer.max_epochs", "'trainer"),
        ("--checkpoint.monitr", "monitor'"),
        (f"{DATA}.imbalence.ratio", "'imbalance"),
    ],
)
def test_the_part_that_is_wrong_is_corrected(option: str, nearest: str) -> None:
    assert nearest in complaint(option, "3").partition("did you mean")[2]


def test_the_class_that_refuses_is_named() -> None:
    assert complaint(f"{ENCODER}.image_tower.init_args.nam", "x").startswith("TimmImageTower has no ")
    assert complaint(f"{ENCODER}.embeding_width", "3").startswith("DualEncoder has no ")
    assert complaint(f"{DATA}.source.init_args.num_trian", "3").startswith("SceneSource has no ")


def test_without_a_near_name_all_are_listed() -> None:
    message = complaint(f"{DATA}.source.init_args.zzz", "3")
    assert "\n" not in message
    assert "SceneSource has no 'zzz'; it knows seed, num_train, num_val, num_test, size, max_objects" in message


@pytest.mark.parametrize("where", ["option", "file"])
def test_an_unknown_key_of_the_imbalance(tmp_path: Path, where: str) -> None:
    if where == "option":
        message = complaint(f"{DATA}.imbalance", "{kind: mismatch, ration: 0.5}")
    else:
        path = tmp_path / "more.yaml"
        path.write_text("data:\n  init_args:\n    imbalance: {kind: mismatch, ration: 0.5}\n")
        message = complaint("--config", str(path))
    assert "\n" not in message
    assert "Imbalance has no 'ration'; did you mean 'ratio'?" in message


def test_a_value_of_one_imbalance_among_several() -> None:
    message = complaint(f"{DATA}.imbalance", "[{kind: mismatch, ratio: 0.5}, {kind: typos, ratio: 2}]")
    assert "the imbalance ratio must lie in [0, 1], got 2" in message
    assert "\n" not in message


def test_an_unknown_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("model:\n  init_args:\n    encoder:\n      init_args: {hiden_width: 3}\n")
    message = complaint("--config", str(path))
    assert "\n" not in message
    assert "'hiden_width'" in message
    assert "'hidden_width'" in message


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((f"{DATA}.imbalance.kind", "mismach"), ("mismach", "mismatch")),
        ((f"{DATA}.augmentation", "stong"), ("stong", "weak")),
        ((f"{DATA}.batch_size", "many"), ("many", "int")),
        ((f"{MODEL}.method.init_args.relation", "avraged"), ("avraged", "averaged")),
        (("--config", "/nowhere/student.yaml"), ("/nowhere/student.yaml",)),
        ((f"{DATA}.source.class_path", "sdr_lightning.data.SceneSorce"), ("SceneSorce",)),
    ],
)
def test_a_value_of_the_wrong_kind(options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    message = complaint(*options)
    assert "\n" not in message
    assert all(part in message for part in parts)


def test_a_wrong_value_of_an_optional_option() -> None:
    message = complaint("--trainer.max_epochs", "many")
    assert "max_epochs" in message
    assert "many" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            (f"{DATA}.imbalance.kind", "mismatch", f"{DATA}.imbalance.ratio", "1.5"),
            "the imbalance ratio must lie in [0, 1], got 1.5",
        ),
        ((f"{DATA}.batch_size", "1"), "the batch size must be at least 2, a contrast needs a negative; got 1"),
        ((f"{DATA}.source.init_args.num_train", "0"), "scenes need positive numbers, got 0, 200, 300, size 32"),
        ((f"{MODEL}.method.init_args.weights", "{itc: 1, kdx: 2}"), "unknown term 'kdx' in weights"),
    ],
)
def test_a_value_that_a_class_refuses(options: tuple[str, ...], expected: str) -> None:
    message = complaint(*options)
    assert "\n" not in message
    assert message.startswith(expected)
    assert len(message) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((f"{DATA}.imbalance.modality", "video"), "modality: expected one of 'image', 'text', 'pair', got 'video'"),
        ((f"{DATA}.source.init_args.num_train", "many"), "num_train: expected int, got 'many'"),
        ((f"{DATA}.train_on", "foo"), "train_on: expected a list, got 'foo'"),
    ],
)
def test_what_was_expected_is_said_in_words(options: tuple[str, ...], message: str) -> None:
    assert complaint(*options) == message


def test_an_unknown_option_of_a_command() -> None:
    assert one_line("Subcommand 'fit' does not accept option 'trainer.max_epoch'") == (
        "there is no option 'trainer.max_epoch'; did you mean 'max_epochs' or 'min_epochs'?"
    )


def test_a_run_folder_that_cannot_be_made_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = complaint("--run_dir", str(tmp_path / "file/run"))
    assert message == f"nothing can be written to file/run: {tmp_path}/file is a file; choose another folder"


def test_a_plain_message_is_passed_on() -> None:
    message = "the folder runs/a already holds a run: choose another"
    assert one_line(message) == message


def test_the_innermost_cause_of_nested_attempts_is_told() -> None:
    message = (
        "Does not validate against any of the Union subtypes\n"
        "Subtypes: [<class 'a.B'>, <class 'NoneType'>]\n"
        "Errors:\n"
        "  - the batch size must be at least 2, got 1\n"
        "  - Expected a <class 'NoneType'>\n"
        "Given value type: <class 'jsonargparse._namespace.Namespace'>\n"
        "Given value: Namespace(class_path='a.B')"
    )
    assert one_line(message) == "the batch size must be at least 2, got 1"
