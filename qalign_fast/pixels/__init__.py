"""Pictures and clips in, uint8 pixels out."""
