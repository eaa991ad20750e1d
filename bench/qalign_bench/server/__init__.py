"""What loads a server and watches it: requests, the clients that send them, the processes that are measured."""
