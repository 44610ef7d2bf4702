"""Answers: greedy for a batch, or in a running batch that questions join and leave."""
