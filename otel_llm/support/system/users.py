"""Who runs this, as far as files know it."""

from __future__ import annotations

import os
from typing import Final

ARE_KNOWN: Final = hasattr(os, "geteuid")
"""Whether owners and modes of files say who may do what with them. On Windows neither does: who may reach the folder may."""


def effective() -> int:
    """The number of the user who runs this; 0 where users have none, as their files have then."""
    return os.geteuid() if ARE_KNOWN else 0
