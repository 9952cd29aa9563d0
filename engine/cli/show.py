# SPDX-License-Identifier: Apache-2.0
"""`torpor show`."""

from argparse import Namespace
from dataclasses import replace

from torpor.engine.cli import output
from torpor.engine.images.directory import Verify
from torpor.engine.inspect.archive import directory_of
from torpor.engine.inspect.read import read


def run(options: Namespace) -> int:
    """Print what an image directory or an archive holds."""
    verify = Verify.WITHOUT_PAGES if options.no_verify else Verify.ALL
    path = options.target or options.dir
    with directory_of(path) as directory:
        images = replace(read(directory, verify=verify), path=str(path))
    if options.json:
        output.emit_json(images)
    else:
        from torpor.engine.inspect.render import lines

        output.emit_lines(lines(images))
    return 0
