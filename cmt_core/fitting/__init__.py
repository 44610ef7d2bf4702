"""A memory checkpoint for any instruct LLM without training: `fit_checkpoint`; read fit.py first."""
