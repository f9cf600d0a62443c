"""What readers of a backend over HTTP share: settings, the client, and a reading that is tried again over short gaps."""
