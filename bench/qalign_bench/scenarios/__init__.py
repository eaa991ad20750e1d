"""What `qalign-fast bench` can measure: one file for each scenario."""
