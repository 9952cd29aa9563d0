# SPDX-License-Identifier: Apache-2.0
"""`python -m torpor.engine.criu`."""

import sys

from torpor.engine.criu.entry import main

sys.exit(main())
