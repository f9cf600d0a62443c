"""Where run documents come from: files, folders, archives, object stores and standard input."""

from __future__ import annotations

from runspan.sources.files import documents, parse, pieces, tenants, total_bytes
from runspan.sources.splitter import MAX_DOCUMENT, RawDocument, split

__all__ = ["MAX_DOCUMENT", "RawDocument", "documents", "parse", "pieces", "split", "tenants", "total_bytes"]
