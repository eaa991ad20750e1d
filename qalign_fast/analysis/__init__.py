"""After the run: rows of scores in; a report, a threshold, a calibration, a comparison or a ranking out."""
