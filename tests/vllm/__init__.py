"""vLLM itself as engine (`make test-vllm`): run by the interpreter of its own environment."""
