"""Labels and scores in, agreement out: lists of data sets, protocols, intervals."""
