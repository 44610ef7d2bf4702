"""The frozen LLM: its keys and values read and written, its tokens, its kernels on a CPU, and where it comes from."""
