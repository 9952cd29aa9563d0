# SPDX-License-Identifier: Apache-2.0
"""What is used in a ``with`` statement and closed at its end, however that comes."""

from typing import Self


class Closing:
    """A context manager by its `close`, which may be called more than once."""

    __slots__ = ()

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
