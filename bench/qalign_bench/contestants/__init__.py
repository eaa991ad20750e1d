"""What is measured: processes that answer over a pipe, ours and the peers'."""
