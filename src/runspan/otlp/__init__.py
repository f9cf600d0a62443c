"""Readers and writers of OTLP, the OpenTelemetry protocol, in protobuf and JSON; no I/O."""
