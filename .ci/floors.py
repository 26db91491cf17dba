"""Fail where a direct dependency is not at the lowest version that pyproject.toml allows.

For an environment that `--resolution lowest-direct` made; a floor below which another package asks
for more has to be raised. torch is left out: its CPU build is there before.
"""

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.version import Version

EXTRAS = ("", "test", "serve", "report", "lora", "quantized")

above = []
for line in requires("fastvideo-lightning") or []:
    requirement = Requirement(line)
    marker = requirement.marker
    if requirement.name in ("torch", "fastvideo-lightning"):
        continue
    if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
        (floor,) = (s.version for s in requirement.specifier if s.operator == ">=")
        installed = version(requirement.name)
        if Version(installed) != Version(floor):
            above.append(f"{requirement.name}>={floor} lands on {installed}")
sys.exit("\n".join(above) or None)
