"""Where the time of a batch goes, what a device could do, and the search for tiles."""
