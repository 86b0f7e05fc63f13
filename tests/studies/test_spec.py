"""Reading a study from YAML: values, families, stacks, and how mistakes are reported."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.results.schema import Condition, StudySpec, StudyStage, StudyTuning, Swept
from sdr_lightning.studies.documents import documents
from sdr_lightning.studies.spec import imbalance_at, read_study

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "student": "student.yaml",
    "teachers": {"image": {"config": "image.yaml"}, "text": {"config": "text.yaml", "pretrained": True}},
    "methods": {"InfoNCE": {"weights": {"itc": 1}}, "SDR": {"config": "sdr.yaml", "teachers": "placebo"}},
    "baseline": "InfoNCE",
    "candidate": "SDR",
    "imbalances": {"wrong captions": {"kind": "mismatch"}, "noise": {"kind": "gaussian_noise", "severity": 2}},
    "ratios": [0, 0.5],
    "seeds": 3,
}


def read(folder: Path, change: Callable[[dict[str, Any]], object] = lambda study: None) -> StudySpec:
    """The small study with a change."""
    for name in ("student", "image", "text", "sdr"):
        (folder / f"{name}.yaml").write_text(f"{name}: 1\n")
    study = copy.deepcopy(SMALL)
    change(study)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return read_study(path)


def with_method(**entry: Any) -> Callable[[dict[str, Any]], None]:
    """Replace the method SDR, which stays candidate only if it makes no family."""

    def change(study: dict[str, Any]) -> None:
        study["methods"]["SDR"] = entry
        study["candidate"] = "InfoNCE"
        study["equal_epochs"] = False

    return change


def tuned(tuning: dict[str, Any], **spaces: Any) -> Callable[[dict[str, Any]], None]:
    """Tune the small study, with spaces by method."""

    def change(study: dict[str, Any]) -> None:
        study["tuning"] = {"trials": 5, **tuning}
        for method, space in spaces.items():
            study["methods"][method]["space"] = space

    return change


def test_spaces_and_ratios_of_an_imbalance(tmp_path: Path) -> None:
    space = {"a.rate": [1, 2], "a.weight": {"min": 0.5, "max": 2, "distribution": "log_uniform_values"}}
    study = read(tmp_path, tuned({}, InfoNCE={}, SDR=space))
    assert study.tuning == StudyTuning(trials=5, seed=4)  # the only seed of the study is 3
    assert study.methods["InfoNCE"].space == {}
    assert study.methods["SDR"].space == {"a.rate": {"values": [1, 2]}, "a.weight": space["a.weight"]}
    own = read(tmp_path, lambda s: s["imbalances"]["noise"].update(ratios=[0.6, 0.2], severity=[1, 2]))
    assert [(name, ratio) for name, ratio in own.conditions] == [
        ("none", 0), ("wrong captions", 0.5),
        ("noise, severity 1", 0.2), ("noise, severity 1", 0.6), ("noise, severity 2", 0.2), ("noise, severity 2", 0.6),
    ]  # fmt: skip
    assert own.hardest[1:] == (Condition("noise, severity 1", 0.6), Condition("noise, severity 2", 0.6))


def test_values_and_defaults(tmp_path: Path) -> None:
    study = read(tmp_path, lambda s: s.update(notes="one caveat"))
    assert study.seeds == (3,)
    assert study.student == (tmp_path / "student.yaml",)
    assert (study.jobs, study.notes, study.description, study.protocol) == (1, ("one caveat",), "", "clean")
    assert study.teachers["text"].pretrained
    assert study.methods["InfoNCE"].stages == (StudyStage(weights={"itc": 1}),)
    assert study.methods["SDR"].stages == (StudyStage(config=(tmp_path / "sdr.yaml",)),)
    assert study.methods["SDR"].teachers == "placebo"
    assert study.file == tmp_path / "study.yaml"
    noise = study.imbalances["noise"]
    assert (noise.kind, noise.severities) == ("gaussian_noise", (2.0,))
    assert study.imbalances["wrong captions"].description.startswith("chosen images lose all their captions")


def test_teachers_and_the_config_of_a_method_may_be_left_out(tmp_path: Path) -> None:
    study = read(tmp_path, lambda s: (s.pop("teachers"), s["methods"].update(SDR=None)))
    assert study.teachers == {}
    assert study.methods["SDR"].stages == (StudyStage(),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(seads=[0]), "the study has no 'seads'; did you mean 'seeds'?"),
        (
            lambda s: s["teachers"]["text"].update(pretraind=1),
            "teacher text has no 'pretraind'; did you mean 'pretrained'?",
        ),
        (lambda s: s["methods"]["SDR"].update(weight=1), "method SDR has no 'weight'; did you mean 'weights'?"),
        (
            lambda s: s["imbalances"]["noise"].update(ratio=0.5),
            "imbalance noise has no 'ratio'; did you mean 'ratios'?",
        ),
        (lambda s: s["imbalances"]["noise"].update(severity=6), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (lambda s: s["methods"]["SDR"].update(teachers="fake"), "teachers must be real or placebo, got 'fake'"),
        (lambda s: s["methods"]["SDR"].update(weights=2), "weights must map terms to numbers, got 2"),
        (lambda s: s["methods"]["SDR"].update(options=2), "options must map options of sdr fit to values, got 2"),
        (lambda s: s["methods"]["SDR"].update(epochs=0), "epochs must be a positive integer, got 0"),
        (
            lambda s: s["methods"]["SDR"].update(epochs=2),
            "every method trains for equally many epochs, got InfoNCE: as configured",
        ),
        (lambda s: s["methods"]["SDR"].update(stages=[{}], epochs=1), "method SDR: give a list of stages"),
        (with_method(weights={"kd": [1, 2]}, epochs=[1, 2]), "method SDR sweeps epochs and kd: sweep one field"),
        (lambda s: s.update(baseline="CLIP"), "baseline 'CLIP' is not among the methods InfoNCE, SDR"),
        (lambda s: s["teachers"].update(audio={"config": "text.yaml"}), "teachers are image and text, got audio"),
        (lambda s: s["teachers"]["text"].update(trained_on="imbalanced"), "a pretrained teacher is not trained"),
        (lambda s: s.update(ratios=[0, 1.2, -1]), "ratios must lie in [0, 1], got 1.2"),
        (lambda s: s.update(seeds=[1, 1]), "seeds must be given, each once, got [1, 1]"),
        (lambda s: s.update(imbalances={}), "imbalances must be given, each once, got []"),
        (lambda s: s.update(methods=["InfoNCE"]), "methods must be a mapping, got list"),
        (lambda s: s.update(protocol="papers"), "protocol must be clean or paper, got 'papers'"),
        (lambda s: s.update(name="a/b"), "'a/b' cannot name a folder"),
        (lambda s: s.pop("baseline"), "the study lacks 'baseline'"),
        (lambda s: s["teachers"]["image"].pop("config"), "teacher image lacks 'config'"),
        (lambda s: s["methods"]["SDR"].update(config="absent.yaml"), "no configuration at "),
        (lambda s: s["imbalances"]["noise"].update(ratios=[2]), "ratios of noise must lie in [0, 1], got 2"),
        (lambda s: s["methods"]["SDR"].update(space={}), "method SDR has a space, which nothing searches: add tuning"),
        (tuned({}), "method InfoNCE has no space: tuning gives every method equally many trials"),
        (tuned({"trails": 2}), "tuning has no 'trails'; did you mean 'trials'?"),
        (tuned({"trials": 1}), "tuning: trials must be an integer of at least 2, got 1"),
        (tuned({"seed": 3}, InfoNCE={}, SDR={}), "tuning: seed 3 is among the seeds [3]: choose another"),
        (
            tuned({}, InfoNCE={}, SDR={"a.b": [1], "c": 2}),
            "space of method SDR: parameter 'c' needs value, values, or min",
        ),
        (
            tuned({}, InfoNCE={}, SDR={"a.b": {"min": 2, "max": 1}}),
            "space of method SDR: parameter 'a.b': min 2 is greater",
        ),
        (
            tuned({}, SDR={"data.init_args.imbalance.ratio": [1]}),
            "holds data.init_args.imbalance.ratio, which the study sets",
        ),
        (
            lambda s: (tuned({}, InfoNCE={}, SDR={})(s), s.update(protocol="paper")),
            "protocol paper selects on the test split: leave tuning out",
        ),
        (
            lambda s: s.update(ratios=[0.3, 0.6], imbalances={"p": {"file": "noise.npy"}}),
            "imbalance p has one file for several ratios",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_name_the_file_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"study\.yaml: ") as error:
        read(tmp_path, change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no study at"), (b"\xff\xfe\x00", "is not YAML"), (b"", "the study must be a mapping")],
    ids=["absent", "binary", "empty"],
)
def test_file_that_is_no_study(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "study.yaml")


def test_a_configuration_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: {init_args: [")
    with pytest.raises(ValueError, match=r"bad\.yaml is not YAML in UTF-8: while parsing"):
        list(documents(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("entry", "names", "last"),
    [
        ({"epochs": [1, 4]}, ["SDR, epochs 1", "SDR, epochs 4"], StudyStage(epochs=4)),
        (
            {"weights": {"itc": 1, "kd": [1, 2.5]}},
            ["SDR, kd 1", "SDR, kd 2.5"],
            StudyStage(weights={"itc": 1, "kd": 2.5}),
        ),
        (
            {"options": {"model.init_args.x": [2, 3]}},
            ["SDR, x 2", "SDR, x 3"],
            StudyStage(options={"model.init_args.x": 3}),
        ),
    ],
    ids=["epochs", "weight", "option"],
)
def test_list_of_values_makes_a_family(tmp_path: Path, entry: Any, names: list[str], last: StudyStage) -> None:
    study = read(tmp_path, with_method(**entry))
    family = [method for name, method in study.methods.items() if name != "InfoNCE"]
    assert [method.name for method in family] == names
    assert family[-1].stages == (last,)
    field, _, value = names[-1].removeprefix("SDR, ").partition(" ")
    assert family[-1].swept == Swept(field, float(value))


def test_family_over_words_has_no_axis(tmp_path: Path) -> None:
    study = read(tmp_path, with_method(options={"model.init_args.relation": ["fused", "averaged"]}))
    assert [(name, method.swept) for name, method in study.methods.items()][1:] == [
        ("SDR, relation fused", None),
        ("SDR, relation averaged", None),
    ]


def test_stages_share_the_config_and_options_of_their_method(tmp_path: Path) -> None:
    stages = [{"weights": {"itc": 1}, "epochs": 2}, {"config": "text.yaml", "options": {"a": 1}, "epochs": 3}]
    study = read(tmp_path, with_method(config="sdr.yaml", options={"b": 2}, stages=stages))
    first, last = study.methods["SDR"].stages
    assert first == StudyStage((tmp_path / "sdr.yaml",), {"itc": 1}, {"b": 2}, 2)
    assert last == StudyStage((tmp_path / "sdr.yaml", tmp_path / "text.yaml"), None, {"b": 2, "a": 1}, 3)
    assert study.methods["SDR"].total_epochs == 5


def test_corruption_with_a_list_is_swept_and_a_list_of_corruptions_is_a_stack(tmp_path: Path) -> None:
    both = [{"kind": "mismatch"}, {"kind": "missing", "modality": "text"}]
    study = read(tmp_path, lambda s: s.update(imbalances={"blur": {"kind": "blur", "severity": [1, 3]}, "both": both}))
    assert list(study.imbalances) == ["blur, severity 1", "blur, severity 3", "both"]
    assert imbalance_at(study, "blur, severity 3", 0.3, 2) == (Imbalance("blur", 0.3, severity=3, seed=2),)
    assert imbalance_at(study, "both", 0.3, 2) == (
        Imbalance("mismatch", 0.3, seed=2),
        Imbalance("missing", 0.3, modality="text", seed=2),
    )
    assert "; " in study.imbalances["both"].description


@pytest.mark.parametrize(
    ("file", "found"), [("{ratio}.npy", "{folder}/0.4.npy"), ("$NOISE/{ratio}.npy", "$NOISE/0.4.npy")]
)
def test_file_of_a_corruption_may_depend_on_the_ratio(tmp_path: Path, file: str, found: str) -> None:
    study = read(tmp_path, lambda s: s.update(imbalances={"published": {"file": file, "splits": ["train"]}}))
    assert imbalance_at(study, "published", 0.4, 1) == (Imbalance(file=found.format(folder=tmp_path)),)
