# SPDX-License-Identifier: Apache-2.0
"""Entry point of `python3 tests/e2e/cluster`: makes the checkout importable, then runs the tool."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

from tests.e2e.cluster.cli import main  # noqa: E402

sys.exit(main())
