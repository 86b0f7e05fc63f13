"""Building students, teachers and data from YAML files and command line options."""

from sdr_lightning.configure.build import build_data, build_method, student_data
from sdr_lightning.configure.lightning_cli import build, parse, run
from sdr_lightning.configure.teacher import teacher_tower

__all__ = ["build", "build_data", "build_method", "parse", "run", "student_data", "teacher_tower"]
