"""Where run documents come from: files, folders and standard input."""

from __future__ import annotations

from runspan.sources.files import documents, files, pieces, runs, total_bytes
from runspan.sources.split import MAX_DOCUMENT, Piece, split

__all__ = ["MAX_DOCUMENT", "Piece", "documents", "files", "pieces", "runs", "split", "total_bytes"]
