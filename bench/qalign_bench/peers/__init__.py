"""What the engines are measured against; each module is the script of a process that `loop.py`'s commands drive."""
