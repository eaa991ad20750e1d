"""Scoring on a server: a feed that sends its items over HTTP, and what the server says of its model."""
