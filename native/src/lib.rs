//! The inner loops of the OTLP reader and writer. Everything here also exists in Python, with the same results.

use pyo3::prelude::*;

#[pymodule]
mod _native {}
