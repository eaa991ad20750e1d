"""The HTTP server: an application on `feed` and `Scorer`. `make_app` is its ASGI form."""
