"""A study on precomputed features without images."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sdr_lightning.data import SceneSource
from sdr_lightning.data.scenes import fact_counts
from tests.e2e.sdr import sdr, succeeded

SPLITS = {"train": "train", "dev": "val", "test": "test"}


def write_features(folder: Path) -> int:
    """Write three noisy regions per scene in the format of SCAN; return their width."""
    source = SceneSource(num_train=96, num_val=40, num_test=40, size=16)
    generator = np.random.default_rng(0)
    for name, split in SPLITS.items():
        facts = fact_counts([scene.objects for scene in source.scenes(split)]).astype(np.float32)
        regions = facts[:, None] + generator.normal(0, 0.1, (len(facts), 3, facts.shape[1]))
        np.save(folder / f"{name}_ims.npy", regions.astype(np.float32))
        (folder / f"{name}_caps.txt").write_text("\n".join(source.table(split).captions) + "\n")
    return int(facts.shape[1])


@pytest.mark.slow
def test_study_on_precomputed_features(tmp_path: Path, experiments: Path) -> None:
    width = write_features(tmp_path)
    tiny = yaml.safe_load((experiments / "models/tiny.yaml").read_text())
    text_tower = tiny["init_args"]["encoder"]["init_args"]["text_tower"]
    image_tower = {
        "class_path": "sdr_lightning.encoders.PrecomputedImageTower",
        "init_args": {"features_width": width, "width": 32},
    }
    tiny["init_args"]["encoder"]["init_args"]["image_tower"] = image_tower
    tiny["init_args"]["method"]["init_args"] |= {"image_teacher_width": width, "text_teacher_width": 64}
    data = {
        "class_path": "sdr_lightning.data.RetrievalDataModule",
        "init_args": {
            "source": {
                "class_path": "sdr_lightning.data.PrecomputedSource",
                "init_args": {"name": "made", "folder": str(tmp_path)},
            },
            "tokenizer": {"class_path": "sdr_lightning.data.SceneTokenizer"},
            "batch_size": 64,
            "cache": str(tmp_path / "cache"),
        },
    }
    pooled = {**image_tower, "init_args": {"features_width": width, "width": None, "frozen": True}}
    for name, tower in (("image", pooled), ("text", text_tower)):
        model = {"class_path": "sdr_lightning.training.TeacherModule", "init_args": {"tower": tower}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    trainer = {"max_epochs": 1, "accelerator": "cpu"}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": tiny, "data": data, "trainer": trainer}))
    study = yaml.safe_load((experiments / "scenes/study.yaml").read_text())
    study |= {
        "student": "student.yaml",
        "teachers": {name: {"config": f"{name}.yaml", "pretrained": True} for name in ("image", "text")},
        "methods": {"InfoNCE": {"weights": {"itc": 1}}, "SDR": None},
        "imbalances": {"poor": [{"kind": "mismatch", "level": "caption"}, {"kind": "missing", "modality": "image"}]},
        "ratios": [0, 0.5],
        "seeds": [0],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    succeeded(sdr("reproduce", tmp_path / "study.yaml", "--output", tmp_path / "out", cwd=tmp_path))
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("cells/**/results.json")]
    assert len(results) == 4
    poor = {result["method"]: result for result in results if result["ratio"] == 0.5}
    assert poor["InfoNCE"]["realised"]["sha256"] == poor["SDR"]["realised"]["sha256"]
    assert [part["affected"] for part in poor["SDR"]["realised"]["imbalances"]] == [240, 48]
    degrees = {r["ratio"]: r["realised"]["degree"]["image_to_text"] for r in results if r["method"] == "SDR"}
    assert degrees[0] < degrees[0.5]
    assert (tmp_path / "out/report.html").is_file()
