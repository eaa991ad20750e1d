"""Labels and scores in, agreement out: lists, protocols, intervals; and labels made ready for training."""
