"""The paper's own trained parts: soft tokens, their aggregation into one context, their alignment, and self-matching."""
