//! The inner loops of the OTLP reader and writer, without which Python does the same work.

use pyo3::prelude::*;

mod document;
mod json;
mod placement;
mod reader;
mod timestamps;
mod writer;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::document::PlainDocuments;
    #[pymodule_export]
    use super::json::is_document;
    #[pymodule_export]
    use super::reader::Reader;
    #[pymodule_export]
    use super::writer::SpanWriter;
}
