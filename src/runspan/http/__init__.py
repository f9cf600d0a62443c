"""What every HTTP client of runspan shares: URLs, TLS, deadlines, bounded bodies, retries and rate limits."""
