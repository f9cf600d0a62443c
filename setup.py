"""Build the native part, which pyproject.toml cannot describe yet.

Without a Rust compiler the package is built without it and is slower: see ``runspan.otlp.bulk_writer``.
"""

from setuptools import setup
from setuptools_rust import Binding, RustExtension, Strip

setup(
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
