"""CMT: a growing memory for a frozen language model, as keys and values that it already knows how to read."""
