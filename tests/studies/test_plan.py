"""The jobs of a study: their options, folders, banks and fingerprints."""

import json
import shlex
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.configure import build
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.results.schema import Condition, StudyMethod, StudySpec, StudyStage, StudyTuning
from sdr_lightning.studies.plan import Cell, Plan, plan
from sdr_lightning.studies.spec import imbalance_at, read_study, study_imbalance

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDY = read_study(Path(__file__).with_name("study.yaml"))
FOLDER = Path("results")
BANKS = {"image": "--data.init_args.image_bank", "text": "--data.init_args.text_bank"}


@cache
def study_plan() -> Plan:
    return plan(STUDY, FOLDER)


def option(cell: Cell, name: str) -> str | None:
    """The value that counts, the last one."""
    values = [value for word, value in zip(cell.arguments, cell.arguments[1:], strict=False) if word == name]
    return values[-1] if values else None


def stack(cell: Cell) -> tuple[Imbalance, ...]:
    """The corruption in the options of a cell."""
    return tuple(Imbalance(**entry) for entry in json.loads(option(cell, "--data.init_args.imbalance") or ""))


def cells(planned: Plan, **wanted: object) -> list[Cell]:
    return [cell for cell in planned.cells if all(getattr(cell, k) == v for k, v in wanted.items())]


def with_method(name: str, *stages: StudyStage, study: StudySpec = STUDY, **fields: Any) -> StudySpec:
    return replace(study, methods={**study.methods, name: StudyMethod(name, stages, **fields)}, equal_epochs=False)


def fingerprints(study: StudySpec) -> list[str]:
    return [cell.fingerprint for cell in plan(study, FOLDER).cells]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the experiments that may be changed."""
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")
    (tmp_path / "tests" / "studies").mkdir(parents=True)
    shutil.copy(STUDY.file, tmp_path / "tests" / "studies")
    return tmp_path / "experiments"


def test_every_combination_occurs_once_and_ratio_0_once_for_all_corruptions() -> None:
    found = Counter((c.method, c.imbalance, c.ratio, c.seed) for c in study_plan().cells)
    expected = {
        (method, name, ratio, seed)
        for method in STUDY.methods
        for name in (*STUDY.imbalances, "none")
        for ratio in ((0,) if name == "none" else (0.3, 0.6))
        for seed in (0, 1, 2)
    }
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert len(plan(replace(STUDY, ratios=(0.3, 0.6)), FOLDER).cells) == 5 * 6 * 3


def test_no_two_jobs_share_a_folder_a_file_or_a_fingerprint() -> None:
    folders = [*(cell.folder for cell in study_plan().cells), *(teacher.folder for teacher in study_plan().teachers)]
    assert len(set(folders)) == len(folders)
    assert not any(a in b.parents for a in folders for b in folders)
    files = [bank.file for bank in study_plan().banks] + [bank.placebo for bank in study_plan().banks]
    assert len(set(files)) == len(files)
    assert all(FOLDER in path.parents for path in (*folders, *(file for file in files if file)))
    assert len({cell.fingerprint for cell in study_plan().cells}) == len(study_plan().cells)


def test_cell_sets_seed_corruption_folder_and_method() -> None:
    for cell in study_plan().cells:
        assert option(cell, "--seed_everything") == str(cell.seed)
        assert stack(cell) == (imbalance_at(STUDY, cell.imbalance, cell.ratio, cell.seed) if cell.ratio else ())
        assert option(cell, "--run_dir") == str(cell.folder)
        student, *overlays = (word for word in cell.arguments if word.endswith(".yaml"))
        assert student == str(STUDY.student[0])
        assert overlays == [str(config) for config in STUDY.methods[cell.method].stages[0].config]
        assert cell.with_examples == (cell.seed == 0 and cell.ratio == 0.6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_are_parsed_as_the_cell_they_describe() -> None:
    stage = StudyStage(
        weights={"itc": 1, "kd": 3}, options={"data.init_args.batch_size": 16, "seed_everything": 9}, epochs=5
    )
    planned = plan(with_method("other", stage), FOLDER)
    for cell in (*cells(study_plan(), method="InfoNCE", seed=1)[:1], *cells(planned, method="other", seed=1)[:2]):
        cli = build(list(cell.arguments))
        assert tuple(cli.datamodule.imbalances) == stack(cell)
        assert cli.datamodule.seed == cell.seed  # no option of a method changes it
        if cell.method == "other":
            assert cli.model.method.weights == {"itc": 1, "kd": 3}  # terms that are left out are off
            assert (cli.datamodule.batch_size, cli.trainer.max_epochs) == (16, 5)
            for modality, name in BANKS.items():
                assert Path(str(cli.datamodule.banks[modality])).resolve() == Path(str(option(cell, name))).resolve()


def test_weights_of_the_record_are_those_of_the_built_methods() -> None:
    assert study_plan().methods["InfoNCE"].stages[0].weights == {"itc": 1}
    assert study_plan().methods["SDR"].stages[0].weights == {"itc": 1, "iic": 1, "ttc": 2, "kd": 2, "kdi": 1, "kdt": 1}


@pytest.mark.parametrize(
    ("weights", "modalities"),
    [({"itc": 1}, ()), ({"itc": 1, "iic": 1}, ("image",)), ({"ttc": 1}, ("text",)), ({"kd": 1}, ("image", "text"))],
    ids=["none", "image", "text", "both"],
)
def test_banks_are_extracted_where_the_method_needs_them(
    weights: dict[str, float], modalities: tuple[str, ...]
) -> None:
    study = with_method("M", StudyStage(weights=weights))
    planned = plan(replace(study, methods={"M": study.methods["M"]}, baseline="M", candidate="M"), FOLDER)
    assert {bank.teacher.modality for bank in planned.banks} == set(modalities)
    assert len(planned.teachers) == 2  # structure is compared with both
    for cell in planned.cells:
        assert tuple(bank.teacher.modality for bank in cell.banks) == modalities
        assert tuple(modality for modality, name in BANKS.items() if option(cell, name)) == modalities


def test_study_without_teachers() -> None:
    methods = {name: STUDY.methods[name] for name in ("InfoNCE",)}
    planned = plan(replace(STUDY, methods=methods, candidate="InfoNCE", teachers={}), FOLDER)
    assert planned.teachers == planned.banks == ()
    assert {cell.teachers for cell in planned.cells} == {()}
    with pytest.raises(ValueError, match=r"study.yaml: method InfoNCE \+ representation needs the text teacher, which"):
        plan(replace(STUDY, teachers={"image": STUDY.teachers["image"]}), FOLDER)


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        (StudyStage(weights={"kdx": 1}), "unknown term 'kdx'"),
        (StudyStage(options={"model.init_args.methd.init_args.x": 1}), "methd"),
        (StudyStage(options={"model.init_args.method": "no_such_package.Method"}), "no_such_package"),
    ],
    ids=["term", "option", "class"],
)
def test_method_that_cannot_be_built_is_named(stage: StudyStage, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"study\.yaml: method SDR: ") as error:
        plan(with_method("SDR", stage), FOLDER)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_banks_are_shared_where_teachers_see_the_same() -> None:
    for modality, touched in (("image", "image noise"), ("text", "missing words")):

        def files(name: str, modality: str = modality) -> list[str | None]:
            return [option(cell, BANKS[modality]) for cell in cells(study_plan(), method="SDR", imbalance=name)]

        (clean,) = set(files("none"))
        for name in STUDY.imbalances:
            if name == touched:
                assert len({*files(name), clean}) == 6 + 1
            else:
                assert set(files(name)) == {clean}
    extracted = {str(bank.file): bank for bank in study_plan().banks}
    assert len(extracted) == len(study_plan().banks) == 2 * (1 + 6)
    for cell in cells(study_plan(), method="SDR"):
        for modality, name in BANKS.items():
            bank = extracted[option(cell, name) or ""]
            assert bank.teacher.modality == modality
            assert bank.imbalances == tuple(part for part in stack(cell) if part.modality == modality)


def test_noise_file_may_corrupt_what_either_teacher_sees() -> None:
    published = study_imbalance("published", Imbalance(file="index_{ratio}.npy"))
    planned = plan(replace(STUDY, imbalances={"published": published}, ratios=(0.4,), seeds=(0,)), FOLDER)
    assert {stack(cell)[0].file for cell in planned.cells} == {"index_0.4.npy"}
    assert all(bank.imbalances == (Imbalance(file="index_0.4.npy"),) for bank in planned.banks)


def test_placebo_banks_stand_beside_the_real_ones() -> None:
    placebo = {str(bank.file): str(bank.placebo) for bank in study_plan().banks}
    both = zip(cells(study_plan(), method="SDR"), cells(study_plan(), method="SDR, placebo teachers"), strict=True)
    for real, control in both:
        assert (real.imbalance, real.seed) == (control.imbalance, control.seed)
        for name in BANKS.values():
            assert option(control, name) == placebo[option(real, name) or ""]
    real_only = {name: method for name, method in STUDY.methods.items() if method.teachers == "real"}
    assert {bank.placebo for bank in plan(replace(STUDY, methods=real_only), FOLDER).banks} == {None}


def test_pretrained_teacher_is_not_trained() -> None:
    image = replace(STUDY.teachers["image"], pretrained=True)
    planned = plan(replace(STUDY, teachers={**STUDY.teachers, "image": image}), FOLDER)
    assert [teacher.checkpoint is None for teacher in planned.teachers] == [True, False]
    lines = [shlex.split(line) for line in planned.commands().splitlines()]
    of_image = [line for line in lines if str(image.config[0]) in line]
    assert {line[1] for line in of_image} == {"extract"}
    assert not any("--ckpt_path" in line for line in of_image)


def test_planning_is_repeatable_and_writes_nothing(tmp_path: Path) -> None:
    assert plan(STUDY, tmp_path / "new") == plan(STUDY, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    assert fingerprints(STUDY) == [cell.fingerprint for cell in plan(STUDY, Path("elsewhere")).cells]
    fewer = replace(STUDY, methods={name: STUDY.methods[name] for name in ("InfoNCE", "SDR")}, seeds=(1,))
    assert set(fingerprints(fewer)) < set(fingerprints(STUDY))


@pytest.mark.parametrize(
    "stage",
    [
        StudyStage(config=STUDY.methods["SDR"].stages[0].config, weights={"itc": 1, "kd": 3}),
        StudyStage(config=STUDY.methods["InfoNCE"].stages[0].config),
        StudyStage(config=STUDY.methods["SDR"].stages[0].config, epochs=3),
        StudyStage(config=STUDY.methods["SDR"].stages[0].config, options={"data.init_args.batch_size": 16}),
    ],
    ids=["weights", "config", "epochs", "options"],
)
def test_fingerprints_change_with_the_settings_of_a_method(stage: StudyStage) -> None:
    before = {cell.folder: cell.fingerprint for cell in study_plan().cells}
    after = plan(with_method("SDR", stage, description="other words"), FOLDER).cells
    assert {cell.method for cell in after if before[cell.folder] != cell.fingerprint} == {"SDR"}


def test_descriptions_and_comments_do_not_count(copied: Path) -> None:
    for name in ("scenes/sdr.yaml", "models/tiny.yaml", "scenes/image_teacher.yaml", "methods/itc.yaml"):
        (copied / name).write_text("# Other words.\n" + (copied / name).read_text())
    described = with_method(
        "SDR", *STUDY.methods["SDR"].stages, study=read_study(copied.parent / "tests/studies/study.yaml")
    )
    assert fingerprints(described) == fingerprints(STUDY)


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("scenes/sdr.yaml", "max_epochs: 8", "max_epochs: 9", ""),
        ("models/tiny.yaml", "hidden_size: 64", "hidden_size: 32", ""),
        ("scenes/image_teacher.yaml", "max_epochs", "min_epochs: 2\n  max_epochs", "image"),
    ],
    ids=["student", "fragment", "teacher"],
)
def test_fingerprints_change_with_files(copied: Path, name: str, old: str, new: str, changed: str) -> None:
    study = read_study(copied.parent / "tests/studies/study.yaml")
    before, file = plan(study, FOLDER), copied / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    after = plan(study, FOLDER)
    assert not {cell.fingerprint for cell in before.cells} & {cell.fingerprint for cell in after.cells}
    assert not {bank.file for bank in before.banks} & {bank.file for bank in after.banks}
    teachers = zip(before.teachers, after.teachers, strict=True)
    assert [a.modality for a, b in teachers if a.fingerprint != b.fingerprint] == [changed][: bool(changed)]


@pytest.mark.parametrize("place", ["overlay", "option"])
def test_code_of_a_method_outside_the_package_counts_for_its_own_cells(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / f"methods_of_mine_{place}.py"
    code.write_text(
        "from sdr_lightning.methods import Method\n\n\nclass Mine(Method):\n"
        "    def __init__(self, margin: float = 0.1):\n        super().__init__({'mine': 1.0})\n\n"
        "    def terms(self, pairs, local_rows=slice(None)):\n        return {}\n"
    )
    name = f"{code.stem}.Mine"
    (tmp_path / "mine.yaml").write_text(json.dumps({"model": {"init_args": {"method": {"class_path": name}}}}))
    in_overlay, in_option = (tmp_path / "mine.yaml",), {"model.init_args.method": name}
    stage = StudyStage(config=in_overlay) if place == "overlay" else StudyStage(options=in_option)
    study = with_method("mine", stage)
    before = plan(study, FOLDER)
    others = replace(study, methods=STUDY.methods)
    assert {cell.fingerprint for cell in plan(others, FOLDER).cells} < {cell.fingerprint for cell in before.cells}
    assert before.methods["mine"].stages[0].weights == {"mine": 1}
    assert not any(cell.banks for cell in cells(before, method="mine"))
    code.write_text(code.read_text().replace("0.1", "0.2"))
    after = plan(study, FOLDER)
    changed = {a.method for a, b in zip(before.cells, after.cells, strict=True) if a.fingerprint != b.fingerprint}
    assert changed == {a.method for a, b in zip(before.cells, after.cells, strict=True) if a.code != b.code} == {"mine"}
    assert before.teachers == after.teachers
    assert before.fingerprint != after.fingerprint
    assert before.code != after.code


def test_code_of_the_student_counts_everywhere_and_that_of_its_own_method_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student of the scenes is configured with SDR, which the methods of a study replace."""
    study = read_study(EXPERIMENTS / "scenes/study_methods.yaml")
    hashed: list[set[str]] = []
    monkeypatch.setattr(
        "sdr_lightning.studies.plan.CodeReader.fingerprint", lambda _, names: hashed.append({*names}) or ""
    )
    plan(study, FOLDER)
    _, image, text, *of_methods = hashed
    of = dict(zip(study.methods, of_methods, strict=True))
    assert all("sdr_lightning.training.RetrievalModule" in names for names in hashed)
    assert all("sdr_lightning.training.TeacherModule" in names for names in (image, text, *of_methods))
    assert {name for name, names in of.items() if "sdr_lightning.methods.sdr.SDR" in names} == {"SDR"}
    assert {name for name, names in of.items() if any("NCR" in each for each in names)} == {"NCR"}
    assert not any("SDR" in name for name in image | text)


RATE = "model.init_args.optimisation.init_args.learning_rate"
TUNED = replace(
    STUDY,
    methods={
        "InfoNCE": replace(STUDY.methods["InfoNCE"], space={RATE: {"values": [1e-3, 2e-3, 4e-3]}}),
        "SDR": replace(
            STUDY.methods["SDR"],
            space={RATE: {"min": 1e-3, "max": 1e-2}, "model.init_args.method.init_args.weights": {"values": [{"itc": 1}]}},
        ),
    },
    imbalances={name: STUDY.imbalances[name] for name in ("mismatch", "missing words")},
    tuning=StudyTuning(trials=4, seed=7),
)  # fmt: skip


def test_trials_come_first_with_a_seed_of_their_own_and_the_same_points_everywhere() -> None:
    planned = plan(TUNED, FOLDER)
    assert planned.cells == ()
    assert planned.commands().splitlines()[-1].startswith("# The trials choose the options of the cells")
    assert "sdr test" not in planned.commands()
    points = {name: method.points for name, method in planned.methods.items()}
    assert [len(each) for each in points.values()] == [3, 4]  # 2e-3 is the rate of the configuration
    assert points["InfoNCE"][0] == points["SDR"][0] == {}
    assert {point.get(RATE) for point in points["InfoNCE"]} == {None, 1e-3, 4e-3}
    found = {(t.method, t.imbalance, t.ratio, t.trial): t for t in planned.trials}
    assert len(found) == len(planned.trials) == (3 + 4) * 5
    assert len({trial.folder for trial in planned.trials}) == len({t.fingerprint for t in planned.trials}) == 35
    for (method, _, _, number), trial in found.items():
        assert trial.options == points[method][number]
        assert trial.seed == 7
        assert option(trial, "--seed_everything") == "7"
        assert option(trial, f"--{RATE}") == (f"{trial.options[RATE]}" if number else None)
        assert all(part.seed == 7 for part in stack(trial))
        assert trial.folder.parts[-4:-2] == ("trials", method)
        assert [bool(trial.banks)] == [method == "SDR" and number == 0]  # its other points train by matching alone


def test_cells_of_a_tuned_study_have_the_chosen_options_and_no_trace_of_the_trials() -> None:
    condition = Condition("mismatch", 0.6)
    chosen = defaultdict(dict, {("InfoNCE", condition): {RATE: 4e-3}})
    planned = plan(TUNED, FOLDER, chosen)
    untuned = plan(
        replace(TUNED, tuning=None, methods={n: replace(m, space=None) for n, m in TUNED.methods.items()}), FOLDER
    )
    assert len(planned.cells) == 2 * 5 * 3
    for cell, before in zip(planned.cells, untuned.cells, strict=True):
        is_chosen = (cell.method, cell.imbalance, cell.ratio) == ("InfoNCE", *condition)
        assert cell.options == ({RATE: 4e-3} if is_chosen else {})
        assert option(cell, f"--{RATE}") == ("0.004" if is_chosen else None)
        assert (cell.fingerprint != before.fingerprint) == is_chosen
    more = plan(replace(TUNED, tuning=StudyTuning(trials=9, seed=8)), FOLDER, chosen)
    assert [cell.fingerprint for cell in more.cells] == [cell.fingerprint for cell in planned.cells]
    assert more.fingerprint != planned.fingerprint


def test_point_that_cannot_be_built_is_refused_before_the_first_trial() -> None:
    space = {"model.init_args.method.init_args.relation": {"values": ["averaged", "image_txet"]}}
    methods = {**TUNED.methods, "SDR": replace(TUNED.methods["SDR"], space=space)}
    with pytest.raises(ValueError, match=r"study\.yaml: method SDR: .*image_txet"):
        plan(replace(TUNED, methods=methods), FOLDER)


def test_imbalance_may_have_ratios_of_its_own() -> None:
    words = replace(STUDY.imbalances["missing words"], ratios=(0.6,))
    study = replace(STUDY, imbalances={"mismatch": STUDY.imbalances["mismatch"], "missing words": words})
    found = {(cell.imbalance, cell.ratio, cell.with_examples) for cell in plan(study, FOLDER).cells if cell.seed == 0}
    assert found == {
        ("none", 0, False), ("mismatch", 0.3, False), ("mismatch", 0.6, True), ("missing words", 0.6, True)
    }  # fmt: skip
    assert study.ratios_of("missing words") == (0, 0.6)
    assert study.num_expected == len(plan(study, FOLDER).cells)


def test_commands_make_their_inputs_first() -> None:
    two_stages = (StudyStage(weights={"itc": 1}, epochs=1), StudyStage(weights={"kd": 1}, epochs=1))
    planned = plan(with_method("staged", *two_stages), FOLDER)
    lines = [shlex.split(line) for line in planned.commands().splitlines()]
    assert {line[0] for line in lines} == {"sdr"}
    assert Counter(line[1] for line in lines) == {"fit": 2 + 105 + 2 * 21, "extract": 14, "test": 126}
    fits = [tuple(line[2:]) for line in lines if line[1] == "fit"]
    assert set(fits) >= {cell.arguments for cell in planned.cells}
    made: set[str] = set()
    for line in lines:
        values = dict(zip(line[2::2], line[3::2], strict=True))
        needed = [values.get("--ckpt_path"), values.get("--model.init_args.start_from")]
        assert {file for file in (*needed, *(values.get(name) for name in BANKS.values())) if file} <= made
        if line[1] == "fit":
            made |= {f"{values['--run_dir']}/checkpoints/{name}.ckpt" for name in ("best", "final")}
        if line[1] == "extract":
            made |= {values["--output"], values["--placebo"]}
        if line[1] == "test" and "/SDR/" in values["--run_dir"]:
            assert str(STUDY.methods["SDR"].stages[0].config[0]) in line
