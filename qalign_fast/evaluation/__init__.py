"""Labels and scores in, agreement out: lists, protocols, intervals, paired comparisons."""
