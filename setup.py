"""Build the exporter's inner loops in C, which pyproject.toml cannot describe yet.

Without a C compiler the package is built without them and exports more slowly: see ``runspan.otlp.column_loops``.
"""

from setuptools import Extension, setup

setup(ext_modules=[Extension("runspan.otlp._column_loops", ["src/runspan/otlp/_column_loops.c"], optional=True)])
