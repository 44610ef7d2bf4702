"""A memory of the news in ten lines: no server, no Kafka, no GPU. Run: python examples/quickstart.py"""

from datetime import UTC, datetime

from cmt_core import MemoryBank

bank = MemoryBank()  # loads the frozen LLM with its memory; the first time it fetches 0.2 GB of models
bank.add(
    "The town council of Varde voted on Monday to reopen the old harbour bridge, which has been closed since a barge hit it in "
    "2019. Engineer Mila Toral will lead the repair, which costs 4.2 million crowns.",
    title="Varde reopens its harbour bridge",
    published_at=datetime(2026, 11, 2, 8, 0, tzinfo=UTC),
)
bank.add("Bread got dearer in Osk: a loaf costs 31 crowns since Friday, baker Jon Arel said.", title="Bread in Osk")

for question in ("Who will lead the repair of the harbour bridge?", "How much does a loaf cost in Osk?"):
    answer = bank.ask(question)
    print(f"{question}\n  {answer.text}   [{answer.sources[0].entry.title}]")

bank.save("news-bank")  # MemoryBank.load("news-bank") has it back
