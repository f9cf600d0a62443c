"""Build the native part, which pyproject.toml cannot describe yet.

Without a compiler the package is built without it and is slower: see ``runspan.otlp``.
"""

from setuptools import Extension, setup
from setuptools_rust import Binding, RustExtension, Strip

setup(
    ext_modules=[Extension("runspan.otlp._column_loops", ["src/runspan/otlp/_column_loops.c"], optional=True)],
    rust_extensions=[
        RustExtension(
            "runspan._native",
            "native/Cargo.toml",
            args=["--locked"],
            binding=Binding.PyO3,
            debug=False,
            optional=True,
            py_limited_api=True,
            strip=Strip.All,
        )
    ],
)
