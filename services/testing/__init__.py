"""Small deterministic parts that stand in for the LLM and the bank where a test is about something else."""
