"""What the LLM reads before it answers: memories or texts chosen, placed and surrounded by a prompt."""
