"""Which memories a question is about: the retrieval key, full-text search, and the one ranking of both."""
