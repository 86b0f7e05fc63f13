"""Cleaning of image-text pairs: mismatches, duplicates, leakage between splits, and captions that say little or nothing."""

from sdr_lightning.cleaning.judgement import Cleaned, clean
from sdr_lightning.cleaning.output import write_folder
from sdr_lightning.cleaning.teachers import TeacherChoice

__all__ = ["Cleaned", "TeacherChoice", "clean", "write_folder"]
