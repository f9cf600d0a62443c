"""OTLP, the OpenTelemetry protocol: wire bytes and JSON, written and read; no I/O."""
