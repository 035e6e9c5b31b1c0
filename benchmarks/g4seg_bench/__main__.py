"""``python -m g4seg_bench`` is ``g4seg-bench``."""

from __future__ import annotations

import sys

from g4seg_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
