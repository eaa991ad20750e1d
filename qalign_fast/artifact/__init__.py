"""An artifact's directory: its manifest, its files, and what is checked before they are read."""
