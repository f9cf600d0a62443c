"""The platform's REST dialect over HTTP: its responses, a client, and a client with a rate limit and retries."""
