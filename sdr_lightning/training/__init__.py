"""Lightning modules for students and teachers, with callbacks, checkpoints and tracking."""

from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.training.tracking.wandb_run import WandbRun

__all__ = ["RetrievalModule", "TeacherModule", "WandbRun"]
