import json
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sdr_lightning.configure import build
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.methods.sdr import TERMS
from sdr_lightning.studies.plan import Cell, Plan, imbalance_options, plan
from sdr_lightning.studies.spec import Method, Study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SUITE = Study.load(EXPERIMENTS / "scenes" / "study.yaml")
FOLDER = Path("results")
PLAN = plan(SUITE, FOLDER)
BANKS = {"image": "--data.init_args.image_bank", "text": "--data.init_args.text_bank"}


def option(cell: Cell, name: str) -> str | None:
    return cell.arguments[cell.arguments.index(name) + 1] if name in cell.arguments else None


def stack(cell: Cell) -> tuple[Imbalance, ...]:
    """The imbalances that a cell's options ask for."""
    return tuple(Imbalance(**entry) for entry in json.loads(option(cell, "--data.init_args.imbalance") or ""))


def cells(planned: Plan, **wanted: object) -> list[Cell]:
    return [cell for cell in planned.cells if all(getattr(cell, k) == v for k, v in wanted.items())]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the experiments that may be changed."""
    shutil.copytree(EXPERIMENTS, tmp_path / "experiments")
    return tmp_path / "experiments"


def fingerprints(study: Study) -> list[str]:
    return [cell.fingerprint for cell in plan(study, FOLDER).cells]


@pytest.mark.parametrize(
    ("ratios", "conditions"), [((0, 0.3, 0.6), 1 + 3 * 2), ((0.3, 0.6), 3 * 2), ((0,), 1), ((1.0, 0), 1 + 3)]
)
def test_number_of_cells(ratios: tuple[float, ...], conditions: int) -> None:
    planned = plan(replace(SUITE, ratios=ratios), FOLDER)
    assert len(planned.cells) == 5 * conditions * 3
    clean = [cell for cell in planned.cells if cell.ratio == 0]
    assert len(clean) == (15 if 0 in ratios else 0)
    assert {cell.imbalance for cell in clean} <= {"none"}


def test_every_combination_occurs_once() -> None:
    found = Counter((c.method, c.imbalance, c.ratio, c.seed) for c in PLAN.cells)
    expected = {
        (method, name, ratio, seed)
        for method in SUITE.methods
        for name in (*SUITE.imbalances, "none")
        for ratio in ((0,) if name == "none" else (0.3, 0.6))
        for seed in (0, 1, 2)
    }
    assert set(found) == expected
    assert set(found.values()) == {1}


def test_no_two_jobs_share_a_folder_a_file_or_a_fingerprint() -> None:
    folders = [*(cell.folder for cell in PLAN.cells), *(teacher.folder for teacher in PLAN.teachers)]
    assert len(set(folders)) == len(folders)
    assert not any(a in b.parents for a in folders for b in folders)
    files = [bank.file for bank in PLAN.banks] + [bank.placebo for bank in PLAN.banks]
    assert len(set(files)) == len(files)
    assert all(FOLDER in path.parents for path in (*folders, *(file for file in files if file)))
    assert len({cell.fingerprint for cell in PLAN.cells}) == len(PLAN.cells)


def test_the_imbalance_is_drawn_with_the_seed_of_the_run() -> None:
    for cell in PLAN.cells:
        assert option(cell, "--seed_everything") == str(cell.seed)
        expected = SUITE.imbalances.get(cell.imbalance, ())
        assert stack(cell) == tuple(replace(part, ratio=cell.ratio, seed=cell.seed) for part in expected)


def test_options_name_every_term() -> None:
    for cell in PLAN.cells:
        weights = json.loads(option(cell, "--model.init_args.method.init_args.weights") or "")
        assert set(weights) == set(TERMS)  # a term that is left out is off, whatever the student's file says
        assert {term: weight for term, weight in weights.items() if weight} == SUITE.methods[cell.method].weights
        assert option(cell, "--run_dir") == str(cell.folder)
        assert option(cell, "--config") == str(SUITE.student[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_say_what_the_cell_is() -> None:
    """Parsed by the real parser; banks are not read before a fit."""
    for cell in (cells(PLAN, method="SDR", imbalance="missing words")[4], cells(PLAN, imbalance="none")[1]):
        cli = build(list(cell.arguments))
        assert tuple(cli.datamodule.imbalances) == stack(cell)
        assert cli.datamodule.seed == cell.seed
        assert cli.model.method.weights == SUITE.methods[cell.method].weights
        for modality, name in BANKS.items():
            assert Path(str(cli.datamodule.banks[modality])).resolve() == Path(str(option(cell, name))).resolve()


def test_imbalance_options() -> None:
    parts = (Imbalance("drop_words", 0.3, severity=4, seed=7), Imbalance(file="noise.npz", splits=("train", "val")))
    name, value = imbalance_options(parts)
    assert name == "--data.init_args.imbalance"
    assert tuple(Imbalance(**entry) for entry in json.loads(value)) == parts
    assert imbalance_options(()) == (name, "[]")


def test_only_methods_that_distil_have_banks() -> None:
    for cell in PLAN.cells:
        banks = {option(cell, name) is not None for name in BANKS.values()}
        assert banks == {SUITE.methods[cell.method].distils}
    matching = replace(SUITE, methods={"ITC": SUITE.methods["ITC"]}, candidate="ITC")
    assert plan(matching, FOLDER).banks == ()


def test_banks_are_shared_exactly_where_teachers_are_shown_the_same() -> None:
    def files(name: str, modality: str) -> dict[tuple[float, int], str | None]:
        found = cells(PLAN, method="SDR", imbalance=name)
        return {(cell.ratio, cell.seed): option(cell, BANKS[modality]) for cell in found}

    for modality, touched in (("image", "image noise"), ("text", "missing words")):
        clean = set(files("none", modality).values())
        assert len(clean) == 1
        for name in SUITE.imbalances:
            if name == touched:
                own = list(files(name, modality).values())
                assert len(set(own)) == len(own) == 6
                assert not set(own) & clean
            else:
                assert set(files(name, modality).values()) == clean


def test_banks_are_extracted_once_from_what_they_are_for() -> None:
    extracted = {str(bank.file): bank for bank in PLAN.banks}
    assert len(extracted) == len(PLAN.banks) == 2 * (1 + 6)
    used = {option(cell, name) for cell in cells(PLAN, method="SDR") for name in BANKS.values()}
    assert used == set(extracted)
    for cell in cells(PLAN, method="SDR"):
        for modality, name in BANKS.items():
            bank = extracted[option(cell, name) or ""]
            assert bank.teacher.modality == modality
            assert bank.imbalances == tuple(part for part in stack(cell) if part.modality == modality)


def test_a_noise_file_may_touch_either_teacher() -> None:
    noisy = replace(SUITE, imbalances={"published": (Imbalance(file="index_{ratio}.npy"),)}, ratios=(0.4,), seeds=(0,))
    planned = plan(noisy, FOLDER)
    assert {stack(cell)[0].file for cell in planned.cells} == {"index_0.4.npy"}
    assert all(bank.imbalances == (Imbalance(file="index_0.4.npy"),) for bank in planned.banks)


def test_placebo_banks_stand_beside_the_real_ones() -> None:
    placebo = {str(bank.file): str(bank.placebo) for bank in PLAN.banks}
    both = zip(cells(PLAN, method="SDR"), cells(PLAN, method="SDR, placebo teachers"), strict=True)
    for real, control in both:
        assert (real.imbalance, real.seed) == (control.imbalance, control.seed)
        for name in BANKS.values():
            assert option(control, name) == placebo[option(real, name) or ""]
    real_only = {name: method for name, method in SUITE.methods.items() if method.teachers == "real"}
    assert {bank.placebo for bank in plan(replace(SUITE, methods=real_only), FOLDER).banks} == {None}


def test_examples_are_kept_of_one_seed_at_the_hardest_ratio() -> None:
    kept = [(cell.imbalance, cell.ratio, cell.seed) for cell in PLAN.cells if cell.with_examples]
    assert set(kept) == {(name, 0.6, 0) for name in SUITE.imbalances}
    assert len(kept) == 3 * 5


def test_a_pretrained_teacher_is_not_trained() -> None:
    image = replace(SUITE.teachers["image"], pretrained=True)
    planned = plan(replace(SUITE, teachers={**SUITE.teachers, "image": image}), FOLDER)
    assert [teacher.checkpoint is None for teacher in planned.teachers] == [True, False]
    lines = [shlex.split(line) for line in planned.commands().splitlines()]
    trained = [line for line in lines if str(SUITE.teachers["image"].config[0]) in line and line[1] == "fit"]
    assert trained == []
    extracted = [line for line in lines if line[1] == "extract"]
    assert {("--ckpt_path" in line) for line in extracted if str(image.config[0]) in line} == {False}


def test_planning_twice_gives_the_same_and_writes_nothing(tmp_path: Path) -> None:
    assert plan(SUITE, tmp_path / "new") == plan(SUITE, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_fingerprints_do_not_depend_on_the_folder_or_on_other_methods() -> None:
    assert [cell.fingerprint for cell in plan(SUITE, Path("elsewhere")).cells] == fingerprints(SUITE)
    fewer = replace(SUITE, methods={name: SUITE.methods[name] for name in ("ITC", "SDR")}, seeds=(1,))
    assert set(fingerprints(fewer)) < set(fingerprints(SUITE))


def test_fingerprints_change_with_the_method() -> None:
    before = {c.folder: c.fingerprint for c in PLAN.cells}
    heavier = Method({**SUITE.methods["SDR"].weights, "kd": 3})
    after = plan(replace(SUITE, methods={**SUITE.methods, "SDR": heavier}), FOLDER).cells
    changed = {cell.method for cell in after if before[cell.folder] != cell.fingerprint}
    assert changed == {"SDR"}
    described = replace(SUITE.methods["SDR"], description="other words")
    assert fingerprints(replace(SUITE, methods={**SUITE.methods, "SDR": described})) == fingerprints(SUITE)


@pytest.mark.parametrize("name", ["sdr.yaml", "image_teacher.yaml", "text_teacher.yaml"])
def test_fingerprints_change_with_configurations(copied: Path, name: str) -> None:
    file = copied / "scenes" / name
    study = Study.load(copied / "scenes" / "study.yaml")
    before = plan(study, FOLDER)
    assert [cell.fingerprint for cell in before.cells] == fingerprints(SUITE)  # where the files are does not matter
    file.write_text(file.read_text().replace("max_epochs", "min_epochs: 2\n  max_epochs"))
    after = plan(study, FOLDER)
    assert not {cell.fingerprint for cell in before.cells} & {cell.fingerprint for cell in after.cells}
    assert not {bank.file for bank in before.banks} & {bank.file for bank in after.banks}
    teachers = zip(before.teachers, after.teachers, strict=True)
    assert [a.fingerprint != b.fingerprint for a, b in teachers] == [t in name for t in ("image", "text")]


@pytest.mark.parametrize("name", ["models/tiny.yaml", "data/scenes.yaml"])
def test_fingerprints_change_with_fragments(copied: Path, name: str) -> None:
    study = Study.load(copied / "scenes" / "study.yaml")
    before = fingerprints(study)
    file = copied / name
    file.write_text(
        file.read_text().replace("hidden_size: 64", "hidden_size: 32").replace("batch_size: 128", "batch_size: 64")
    )
    assert not set(before) & set(fingerprints(study))


def test_comments_of_a_configuration_do_not_count(copied: Path) -> None:
    study = Study.load(copied / "scenes" / "study.yaml")
    before = fingerprints(study)
    for name in ("scenes/sdr.yaml", "models/tiny.yaml", "scenes/image_teacher.yaml"):
        (copied / name).write_text("# Other words.\n" + (copied / name).read_text())
    assert fingerprints(study) == before


def test_the_code_that_decides_a_result_is_part_of_every_fingerprint(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of one's own, which the student's configuration names."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loss_of_mine.py").write_text("class Method:\n    margin = 0.1\n")
    file = copied / "models/tiny.yaml"
    file.write_text(file.read_text().replace("sdr_lightning.methods.SDR", "loss_of_mine.Method"))
    study = Study.load(copied / "scenes" / "study.yaml")
    before = plan(study, FOLDER)
    assert {job.code for job in (*before.cells, *before.teachers)} == {before.code}
    (tmp_path / "loss_of_mine.py").write_text("class Method:\n    margin = 0.2\n")
    after = plan(study, FOLDER)
    assert not {cell.fingerprint for cell in before.cells} & {cell.fingerprint for cell in after.cells}
    assert not {job.fingerprint for job in before.teachers} & {job.fingerprint for job in after.teachers}
    assert not {bank.file for bank in before.banks} & {bank.file for bank in after.banks}
    assert before.fingerprint != after.fingerprint


def test_commands() -> None:
    lines = [shlex.split(line) for line in PLAN.commands().splitlines()]
    assert {line[0] for line in lines} == {"sdr"}
    assert Counter(line[1] for line in lines) == {"fit": 2 + 105, "extract": 14, "test": 105}
    fits = [tuple(line[2:]) for line in lines if line[1] == "fit"]
    assert set(fits) >= {cell.arguments for cell in PLAN.cells}
    # The folder of a method's name with a comma and blanks is one word.
    assert any("SDR, placebo teachers" in word for line in lines for word in line)


def test_commands_make_what_they_use_before_they_use_it() -> None:
    made: set[str] = set()
    for line in (shlex.split(line) for line in PLAN.commands().splitlines()):
        values = dict(zip(line[2::2], line[3::2], strict=True))
        needed = [values.get("--ckpt_path"), *(values.get(name) for name in BANKS.values())]
        assert {file for file in needed if file and "placebo" not in file} <= made
        if line[1] == "fit":
            made |= {f"{values['--run_dir']}/checkpoints/{name}.ckpt" for name in ("best", "final")}
        if line[1] == "extract":
            made.add(values["--output"])


def test_commands_make_the_placebo_banks() -> None:
    lines = [shlex.split(line) for line in PLAN.commands().splitlines()]
    words = {word for line in lines if line[1] != "fit" for word in line}
    used = {option(cell, name) for cell in cells(PLAN, method="SDR, placebo teachers") for name in BANKS.values()}
    assert used <= words
