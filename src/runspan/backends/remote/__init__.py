"""What the readers of Tempo and Jaeger share: their config, and an HTTP client with bounds and retries."""
