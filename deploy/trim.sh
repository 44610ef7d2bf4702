#!/bin/sh
# Takes out of a virtual environment what no running program reads: tests, headers, Java, symbol tables. Image build only.
#   trim.sh VENV
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
echo "before: $(du -sm "$1" | cut -f1) MB"
rm -rf "$site"/torch/include "$site"/torch/share "$site"/pyarrow/include "$site"/ray/jars "$site"/ray/rllib
find "$site" -type d -name tests -prune -exec rm -rf {} +
find "$site" \( -name '*.a' -o -name '*.pxd' -o -name '*.pyx' \) -delete
# a program without its symbol table runs the same; one that strip does not understand stays as it is
find "$site" -type f -size +4M \( -name '*.so' -o -name '*.so.*' -o -perm -u+x \) -exec sh -c 'strip --strip-unneeded "$1" 2>/dev/null || :' strip {} \;
# compiled once here: the root is read-only where it runs, and a rarely used module can do without
find "$site" -type d -name __pycache__ -prune -exec rm -rf {} +
echo "after: $(du -sm "$1" | cut -f1) MB"
