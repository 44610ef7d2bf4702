"""Run in a container of the program's image: documents through Kafka at a rate, and a question about a known one again and again.

    python - PREFIX COUNT RATE URL BOOTSTRAP < load_script.py

Prints one JSON object: ids sent and acknowledged, answers that named the known document, statuses of the rest.
"""

import itertools
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

from services.settings import load_settings
from services.stream.producer import DocumentProducer

PREFIX, COUNT, RATE, URL, BOOTSTRAP = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]
QUESTION = {"model": "cmt", "messages": [{"role": "user", "content": "Who unveiled the observatory of Ravnkilde?"}]}
done = threading.Event()
answered: list[float] = []
refused: Counter[str] = Counter()


def ask() -> None:
    """Until the documents are sent."""
    while not done.is_set():
        request = urllib.request.Request(
            f"{URL}/v1/chat/completions",
            json.dumps(QUESTION).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {os.environ.get('CMT_CLIENT__API_KEY', '')}",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=40) as reply:
                found = json.load(reply)["sources"]
            if any(one["doc_id"] == "marker" for one in found):
                answered.append(time.monotonic())
            else:
                refused["wrong answer"] += 1
        except urllib.error.HTTPError as error:
            refused[str(error.code)] += 1
        except (OSError, ValueError):
            refused["no connection"] += 1
        done.wait(0.5)


began = time.monotonic()
asking = threading.Thread(target=ask, daemon=True)
asking.start()
sent = []
with DocumentProducer(
    load_settings(kafka__connect_timeout_s=60).kafka, BOOTSTRAP
) as producer:  # waits out a dead broker
    for number in range(COUNT):
        name = f"{PREFIX}-{number}"
        text = (
            f"The {number}th lock of the canal of {PREFIX.title()} was opened by warden {name.upper()} after repairs."
        )
        value = {"id": name, "title": f"Lock {number}", "text": text}
        producer.send_raw(name.encode(), json.dumps(value).encode(), ())
        sent.append(name)
        time.sleep(1 / RATE)
    producer.flush(180.0)
done.set()
asking.join()
moments = [began, *answered, time.monotonic()]
gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
print(json.dumps({"sent": sent, "answered": len(answered), "refused": refused, "longest_gap_s": max(gaps)}))
