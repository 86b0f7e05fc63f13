"""Publish studies: their report without pictures of the data, and their figures, into docs/results/.

python docs/make_results.py runs/scenes runs/flickr8k runs/flickr8k-grid
"""

import re
import shutil
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def publish(study: Path) -> Path:
    """Copy report.md, without the example retrievals, and figures/ of one study."""
    report = (study / "report.md").read_text(encoding="utf-8")
    # Photographs may not be redistributed, so no study's examples are.
    report = re.sub(r"^## Example retrievals$.*?(?=^## )", "", report, flags=re.MULTILINE | re.DOTALL)
    target = RESULTS / study.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(study / "figures", target / "figures")
    (target / "report.md").write_text(report, encoding="utf-8")
    return target


if __name__ == "__main__":
    for study in [Path(argument) for argument in sys.argv[1:]]:
        if (study / "report.md").is_file():
            print(publish(study))
        else:
            print(f"{study} has no report yet: sdr reproduce its suite first")
