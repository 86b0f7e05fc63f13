"""Lightning modules for students and teachers, with what training needs around them."""

from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule

__all__ = ["RetrievalModule", "TeacherModule"]
