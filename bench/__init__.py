"""The benchmark: ratios between ways to do the same work, measured in one run in which they take turns."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # it starts programs as the tests do
