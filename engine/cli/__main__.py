# SPDX-License-Identifier: Apache-2.0
"""`python -m torpor.engine.cli`."""

import sys

from torpor.engine.cli.entry import main

sys.exit(main())
