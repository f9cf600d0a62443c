"""What readers of a backend over HTTP share: settings, the client, and reading again over short gaps."""
