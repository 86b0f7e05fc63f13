"""``python -m sdr_lightning`` is ``sdr``."""

import sys

from sdr_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
