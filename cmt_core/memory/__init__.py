"""What stands in the bank: how a window becomes codes, how codes become bytes, and how they come back as keys and values."""
