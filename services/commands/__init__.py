"""Commands of `cmt` by part of the system; services/cli.py registers them."""
