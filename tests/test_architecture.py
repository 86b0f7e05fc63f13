"""The shape of the package: layers import downwards only."""

import ast
from pathlib import Path

import sdr_lightning

PACKAGE = Path(sdr_lightning.__file__).parent
LAYERS = [
    {"types", "identity", "paths", "hub", "tables", "imports", "progress", "strings"},
    {"functional"},
    {"encoders", "metrics"},
    {"features", "methods", "results"},
    {"data"},
    {"training"},
    {"configure", "workers"},
    {"reporting"},
    {"retrieval", "cleaning"},
    {"sweeps"},
    {"studies"},
    {"cli"},
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "sdr_lightning" else [f"sdr_lightning.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("sdr_lightning.")}
    return found


def test_every_part_has_a_place() -> None:
    parts = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert parts - {"py"} == HEIGHT.keys()


def test_layers_import_downwards_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        # A layer's parts may not know one another, except that a part knows itself.
        wrong = {name for name in imports(path) - {part, "__version__"} if HEIGHT[name] >= HEIGHT[part]}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_torch_distributed_is_used_in_one_place() -> None:
    users = [path for path in PACKAGE.rglob("*.py") if "all_gather" in path.read_text()]
    assert users == [PACKAGE / "training/distributed/collectives.py"]
