"""Commands of `cmt` by part of the system; tree.py registers them."""
