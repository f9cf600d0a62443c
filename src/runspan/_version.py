"""The version of the package, read by the build and shown by the command line and the server."""

__version__ = "0.1.0"
