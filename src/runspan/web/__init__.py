"""The HTTP side: the REST API, the OTLP receiver and the server that runs them."""
