"""The engine of a replica: questions look up memories, join the running batch and are answered; no Ray, no HTTP."""
