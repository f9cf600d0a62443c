"""The part of the build that pyproject.toml has no settled words for: the exporter's inner loops in C.

Without a C compiler the package is built without them, and exporting is slower: see ``src/runspan/otlp/column_loops.py``.
"""

from setuptools import Extension, setup

setup(ext_modules=[Extension("runspan.otlp._column_loops", ["src/runspan/otlp/_column_loops.c"], optional=True)])
