"""How good samples are, compared with a data set."""
