"""Answers questions from the memory bank: Ray Serve, an OpenAI-compatible API, the web page."""
