//! The inner loops of the OTLP reader and writer. Everything here also exists in Python, with the same results.

use pyo3::prelude::*;

mod document;
mod json;
mod writer;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::document::PlainDocuments;
    #[pymodule_export]
    use super::writer::SpanWriter;
}
