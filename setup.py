"""Build step: a wheel holds the experiments as package data, ``sdr_lightning/experiments``. All else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXPERIMENTS = Path("experiments")


class BuildWithExperiments(build_py):
    """Copies the experiments into the package that is built; an editable installation reads those of the checkout."""

    def run(self) -> None:
        """Build the modules, then copy."""
        super().run()
        if not self.editable_mode:
            for file, target in self._experiments():
                self.mkpath(str(Path(target).parent))
                self.copy_file(file, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List the files that the build writes."""
        copied = [] if self.editable_mode else [target for _, target in self._experiments()]
        return [*super().get_outputs(include_bytecode), *copied]

    def _experiments(self) -> list[tuple[str, str]]:
        package = Path(self.build_lib) / "sdr_lightning"
        return [(str(file), str(package / file)) for file in sorted(EXPERIMENTS.rglob("*")) if file.is_file()]


setup(cmdclass={"build_py": BuildWithExperiments})
