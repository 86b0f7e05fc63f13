"""Values that options accept, of types that are defined in packages which import torch.

The parsers print them without importing those packages. A test compares them with the definitions, which are named here.
"""

from argparse import ArgumentTypeError

SPLITS = ("train", "val", "test")
"""``data.table.SPLITS``."""
KINDS = (
    "mismatch",
    "drop_words",
    "mask_words",
    "truncate",
    "content_words",
    "typos",
    "gaussian_noise",
    "blur",
    "occlusion",
    "low_resolution",
    "low_light",
    "jpeg",
    "missing",
)
"""``data.imbalance.KINDS`` without none."""
PARTNERS = ("random", "shared_word", "nearest")
"""``data.imbalance.PARTNERS``."""
LEVELS = ("caption", "image")
"""``functional.agreement.Level``."""
TIES = ("index", "pessimistic")
"""``functional.ranking.Ties``."""
SIBLINGS = ("keep", "exclude")
"""``metrics.graded.Siblings``."""
TOKENIZERS = ("stripped", "tern")
"""``metrics.relevance.Tokenizer``."""
WITHIN = ("images", "captions", "both")
"""``retrieval.index.Within``."""
REMOVABLE = ("mismatch", "leakage", "duplicates", "uninformative")
"""``cleaning.judgement.REMOVABLE``."""
NEAR_COSINE = 0.9
"""``cleaning.duplicates.NEAR_COSINE``."""


def device(name: str) -> str:
    """Return the name of a device that torch can use; the ``type`` of ``--device``."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ArgumentTypeError(f"{name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name
