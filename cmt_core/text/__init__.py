"""Texts before any model reads them: one form, windows, words, and what stands around a question. Imports nothing heavy."""
