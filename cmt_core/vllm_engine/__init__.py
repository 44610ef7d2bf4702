"""vLLM as an engine that answers from packed memories: a KV connector for its workers, and what asks it (decision 0160)."""
