"""The memory bank: a bitemporal LanceDB table with one writer and many readers."""
