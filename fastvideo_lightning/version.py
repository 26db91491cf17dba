"""The version of the package, and the process that started this one."""

import os

__version__ = "0.2.0"

STARTED_BY = os.getppid()
"""The process that started this one, noted before the imports that take seconds."""
