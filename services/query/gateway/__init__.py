"""The HTTP side: routes, bodies, keys, limits and the page, on any engine."""
