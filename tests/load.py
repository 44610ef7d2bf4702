"""Programs for a container of the program's image, as text: a steady load, and a look at documents one by one."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DOCUMENTS", "LOAD"]

LOAD = (Path(__file__).parent / "load_script.py").read_text(encoding="utf-8")

# ids as JSON on stdin; prints those that the service of argv[1] does not have in exactly one version
DOCUMENTS = """
import json, os, sys, urllib.request as r
key, bad = os.environ.get("CMT_CLIENT__API_KEY", ""), []
for one in json.load(sys.stdin):
    asked = r.Request(f"{sys.argv[1]}/v1/documents/{one}", headers={"Authorization": f"Bearer {key}"})
    try:
        found = len(json.load(r.urlopen(asked, timeout=30))["history"])
    except OSError:
        found = 0
    if found != 1:
        bad.append(one)
print(json.dumps(bad))
"""
