"""``sdr import-checkpoint``: convert checkpoints of other code."""

from __future__ import annotations

from argparse import ArgumentParser
from io import BytesIO
from pathlib import Path

from sdr_lightning.paths import check_output, write_atomically

_ORIGIN = "imported_from"


def parser() -> ArgumentParser:
    """Return the parser of ``sdr import-checkpoint``."""
    parser = ArgumentParser(
        prog="sdr import-checkpoint",
        description="Read a checkpoint of other code, with weights_only, and write a checkpoint for sdr test. Every key is "
        "reported. Further options are options of the student.",
    )
    parser.add_argument("file", type=Path, help="checkpoint to read")
    parser.add_argument("--from", dest="origin", required=True, choices=["public-sdr"], help="origin of the checkpoint")
    parser.add_argument("--config", action="append", required=True, help="student configuration; may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write, FILE.ckpt")
    return parser


def run(arguments: list[str]) -> int:
    """Import a checkpoint; see ``sdr import-checkpoint --help``."""
    options, rest = parser().parse_known_args(arguments)
    import lightning
    import torch

    from sdr_lightning.configure import build
    from sdr_lightning.encoders.weights import read_state
    from sdr_lightning.training import RetrievalModule
    from sdr_lightning.training.checkpoints.public_code import import_public_sdr

    check_output(options.output, [options.file, *options.config], _is_imported)
    state = read_state(options.file)
    module = build([*(word for config in options.config for word in ("--config", config)), *rest]).model
    if not isinstance(module, RetrievalModule):
        raise ValueError(f"the model of the configuration is a {type(module).__name__}, expected a RetrievalModule")
    imported = import_public_sdr(module, state)
    for key, theirs in imported.used.items():
        print(f"used     {theirs} -> {key}")
    for theirs in imported.unused:
        print(f"unused   {theirs}")
    for key in imported.missing:
        print(f"missing  {key}")
    checkpoint = {
        "state_dict": module.state_dict(),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "protocol": "paper",
        _ORIGIN: options.origin,
    }
    content = BytesIO()  # torch.save rejects file names such as .name, used for atomic writes
    torch.save(checkpoint, content)

    def write(part: Path) -> None:
        part.write_bytes(content.getbuffer())

    write_atomically(options.output, write)
    print(
        f"{len(imported.used)} keys used, {len(imported.unused)} unused, {len(imported.missing)} missing; written to "
        f"{options.output}: sdr test --protocol paper --ckpt_path {options.output}"
    )
    return 0


def _is_imported(path: Path) -> bool:
    """Whether a file was written by this command."""
    import torch

    try:
        return _ORIGIN in torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # torch raises many types
        return False
