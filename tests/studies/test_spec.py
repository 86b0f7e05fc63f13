import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.studies.spec import Method, Study, describe_imbalance

STUDY = Path(__file__).parents[2] / "experiments" / "scenes" / "study.yaml"

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "student": "student.yaml",
    "teachers": {"image": {"config": "image.yaml"}, "text": {"config": "text.yaml", "pretrained": True}},
    "methods": {"ITC": {"weights": {"itc": 1}}, "SDR": {"weights": {"itc": 1, "kd": 2}, "teachers": "placebo"}},
    "baseline": "ITC",
    "candidate": "SDR",
    "imbalances": {"wrong captions": {"kind": "mismatch"}, "noise": {"kind": "gaussian_noise", "severity": 2}},
    "ratios": [0, 0.5],
    "seeds": 3,
}


def read(folder: Path, change: Callable[[dict[str, Any]], object] = lambda study: None) -> Study:
    """The small study with a change."""
    for name in ("student", "image", "text"):
        (folder / f"{name}.yaml").write_text(f"{name}: 1\n")
    study = copy.deepcopy(SMALL)
    change(study)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return Study.load(path)


def refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """The message, without the file that it starts with."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller looks at the message)
        read(folder, change)
    message = str(error.value)
    assert message.startswith(f"{folder / 'study.yaml'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'study.yaml'}: ")


def test_the_study_of_scenes() -> None:
    study = Study.load(STUDY)
    assert study.name == "scenes"
    assert study.student == (STUDY.parent / "sdr.yaml",)
    assert study.teachers["text"].config == (STUDY.parent / "text_teacher.yaml",)
    assert not study.teachers["image"].pretrained
    assert study.imbalances["image noise"] == (Imbalance("gaussian_noise", severity=5),)
    assert (study.baseline, study.candidate) == ("ITC", "SDR")
    assert study.methods["SDR"].weights == {"itc": 1, "iic": 1, "ttc": 2, "kd": 2, "kdi": 1, "kdt": 1}
    assert study.ratios == (0, 0.3, 0.6)
    assert study.seeds == (0, 1, 2)
    assert study.file == STUDY
    assert [method.distils for method in study.methods.values()] == [False, True, True, True, True]
    assert [method.teachers for method in study.methods.values()] == ["real"] * 4 + ["placebo"]
    assert describe_imbalance(study.imbalances["mismatch"]).startswith("chosen images lose all their captions")


def test_single_values_are_lists_of_one_and_the_rest_has_defaults(tmp_path: Path) -> None:
    study = read(tmp_path)
    assert study.seeds == (3,)
    assert study.student == (tmp_path / "student.yaml",)
    assert (study.jobs, study.notes, study.description) == (1, (), "")
    assert study.teachers["text"].pretrained
    assert read(tmp_path, lambda s: s.update(notes="one caveat")).notes == ("one caveat",)


def test_paths_are_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "large.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = read(tmp_path, lambda s: s.update(student=["student.yaml", "elsewhere/large.yaml"]))
    assert study.student == (tmp_path / "student.yaml", tmp_path / "elsewhere" / "large.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(seads=[0]), "the study has no 'seads'; did you mean 'seeds'?"),
        (lambda s: s.update(file="x"), "the study has no 'file'; did you mean 'title'?"),
        (
            lambda s: s["teachers"]["text"].update(pretraind=True),
            "teacher text has no 'pretraind'; did you mean 'pretrained'?",
        ),
        (lambda s: s["methods"]["SDR"].update(weight=1), "method SDR has no 'weight'; did you mean 'weights'?"),
        (
            lambda s: s["imbalances"]["noise"].update(severty=1),
            "imbalance noise has no 'severty'; did you mean 'severity'?",
        ),
        # Those are the study's to set.
        (
            lambda s: s["imbalances"]["noise"].update(ratio=0.5),
            "imbalance noise has no 'ratio'; it knows ['kind', 'modality', 'level', 'severity', 'splits', 'file']",
        ),
        (lambda s: s["imbalances"]["noise"].update(seed=0), "imbalance noise has no 'seed'"),
        (lambda s: s["methods"]["SDR"]["weights"].update(kdx=1), "unknown term 'kdx', expected some of itc, itm, iic"),
        (lambda s: s["methods"]["SDR"].update(teachers="fake"), "teachers must be real or placebo, got 'fake'"),
        (lambda s: s["imbalances"]["noise"].update(kind="noise"), "unknown imbalance 'noise', expected one of none"),
        (
            lambda s: s["imbalances"]["noise"].update(severity=6),
            "the imbalance severity must be 1, 2, 3, 4 or 5, got 6",
        ),
        (lambda s: s.update(baseline="CLIP"), "baseline 'CLIP' is not among the methods ITC, SDR"),
        (lambda s: s.update(candidate="CLIP"), "candidate 'CLIP' is not among the methods ITC, SDR"),
        (lambda s: s["teachers"].pop("image"), "teachers must be image and text, got text"),
        (lambda s: s.update(teachers={}), "teachers must be image and text, got none"),
        (lambda s: s.update(ratios=[0, 1.2, -1]), "ratios must lie in [0, 1], got 1.2"),
        (lambda s: s.update(ratios=-0.1), "ratios must lie in [0, 1], got -0.1"),
        (lambda s: s.update(ratios=[]), "ratios must be given, each once, got []"),
        (lambda s: s.update(ratios=[0, 0.5, 0.5]), "ratios must be given, each once, got [0, 0.5, 0.5]"),
        (lambda s: s.update(seeds=[1, 1]), "seeds must be given, each once, got [1, 1]"),
        (lambda s: s.update(imbalances={}), "imbalances must be given, each once, got []"),
        (lambda s: s.update(methods=["ITC"]), "methods must be a mapping, got list"),
        (lambda s: s["teachers"].update(image="image.yaml"), "teacher image must be a mapping, got str"),
        (lambda s: s.pop("title"), "title"),
        (lambda s: s.pop("baseline"), "baseline"),
    ],
)
def test_mistakes(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    assert message in refused(tmp_path, change)


@pytest.mark.parametrize("key", ["student", "teachers", "methods", "imbalances", "config"])
def test_missing_keys(tmp_path: Path, key: str) -> None:
    assert key in refused(tmp_path, lambda s: (s["teachers"]["image"] if key == "config" else s).pop(key))


def test_weights_must_be_a_mapping(tmp_path: Path) -> None:
    assert "weights" in refused(tmp_path, lambda s: s["methods"]["SDR"].update(weights=2))


def test_configurations_must_exist(tmp_path: Path) -> None:
    message = refused(tmp_path, lambda s: s.update(student=["student.yaml", "absent.yaml"]))
    assert message == f"no configuration at {tmp_path / 'absent.yaml'}"
    message = refused(tmp_path, lambda s: s["teachers"]["text"].update(config="absent.yaml"))
    assert message == f"no configuration at {tmp_path / 'absent.yaml'}"


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no study at {tmp_path}/absent.yaml"):
        Study.load(tmp_path / "absent.yaml")
    for content, message in (
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "the study must be a mapping"),
    ):
        path = tmp_path / "broken.yaml"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            Study.load(path)
        assert str(error.value).startswith(str(path))


def test_which_methods_distil() -> None:
    assert not Method({"itc": 1}).distils
    assert not Method({"itc": 1, "kd": 0}).distils
    assert Method({"itc": 1, "kd": 0.1}).distils


def test_a_field_with_a_list_is_swept(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        lambda study: study.update(
            imbalances={"blur": {"kind": "blur", "severity": [1, 3]}, "words": {"kind": "drop_words"}}
        ),
    )
    assert study.imbalances == {
        "blur, severity 1": (Imbalance("blur", severity=1),),
        "blur, severity 3": (Imbalance("blur", severity=3),),
        "words": (Imbalance("drop_words"),),
    }


def test_imbalances_are_stacked(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        lambda study: study.update(
            imbalances={"both": [{"kind": "mismatch"}, {"kind": "missing", "modality": "text"}]}
        ),
    )
    assert study.imbalance_at("both", 0.3, 2) == (
        Imbalance("mismatch", 0.3, seed=2),
        Imbalance("missing", 0.3, modality="text", seed=2),
    )
    assert "; " in describe_imbalance(study.imbalances["both"])


def test_a_file_may_depend_on_the_ratio(tmp_path: Path) -> None:
    study = read(
        tmp_path,
        lambda study: study.update(imbalances={"published": {"file": "noise_inx_{ratio}.npy", "splits": ["train"]}}),
    )
    assert study.imbalance_at("published", 0.4, 1) == (Imbalance(file=str(tmp_path / "noise_inx_0.4.npy")),)


def test_a_file_for_several_ratios_is_refused(tmp_path: Path) -> None:
    def one_file(study: dict[str, Any]) -> None:
        study |= {"ratios": [0, 0.3, 0.6], "imbalances": {"published": {"file": "noise_inx.npy"}}}

    assert refused(tmp_path, one_file).startswith("imbalance published has one file for several ratios")


def test_a_file_of_the_environment_stays_as_it_is(tmp_path: Path) -> None:
    study = read(tmp_path, lambda study: study.update(imbalances={"published": {"file": "$NOISE/{ratio}.npy"}}))
    assert study.imbalance_at("published", 0.5, 0)[0].file == "$NOISE/0.5.npy"
