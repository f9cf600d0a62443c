"""What several test modules share: documents, servers, receivers and ways to drive them."""
