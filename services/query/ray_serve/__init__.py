"""The engine and the gateway as deployments of Ray Serve, and what starts, reloads and reaches them."""
