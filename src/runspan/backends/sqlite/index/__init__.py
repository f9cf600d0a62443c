"""The index of the embedded store: what lists are filtered, sorted and searched by, in a file made from the store."""

from runspan.backends.sqlite.index.indexer import Index

__all__ = ["Index"]
