"""What several tests need: goldens, stand-ins for devices, emulators."""
