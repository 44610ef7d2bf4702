// The live side of the page: counters, charts and the ticker, told by /v1/events.
import { Refused, eventsOf, explain, getJson } from "./api.js";
import { Spark } from "./charts.js";
import { bytes, count, duration, make, setText } from "./format.js";
import { clean, outside, titleButton } from "./outside.js";
import { ago, joined, refreshTimes, timeNode } from "./times.js";

const SHOWN = 14;
const RETRY_MS = 1000;
const $ = (id) => document.getElementById(id);

export class Live {
  // `open(article)` shows one, `onNumbers(stats)` hears of every change
  constructor({ open, onNumbers }) {
    this.open = open;
    this.onNumbers = onNumbers;
    this.articles = [];
    this.sparks = {
      documents: new Spark($("s-documents"), { fromZero: false }),
      lag: new Spark($("s-lag")),
      fresh: new Spark($("s-fresh")),
    };
    this.stopped = new AbortController();
    setInterval(() => this.tick(), 1000);
  }

  namespace() { return $("namespace").value.trim() || "default"; }

  // Listens for ever; a listener that was cut off looks at everything again and goes on.
  async run() {
    for (;;) {
      this.stopped = new AbortController();
      try {
        await this.follow(this.namespace());
      } catch (error) {
        if (error instanceof Refused) this.showProblem(error);
        else if (error.name !== "AbortError") console.error(error);
      }
      await new Promise((resume) => setTimeout(resume, RETRY_MS));
    }
  }

  restart() { this.stopped.abort(); }

  async follow(namespace) {
    const query = `namespace=${encodeURIComponent(namespace)}`;
    $("stream-namespace").hidden = namespace === "default";
    setText("stream-namespace", clean(namespace));
    const stats = await getJson(`v1/stats?latest=${SHOWN}&${query}`);
    this.showAll(stats.latest);
    this.showNumbers(stats);
    for await (const { event, data } of eventsOf(`v1/events?${query}`, { signal: this.stopped.signal })) {
      const body = JSON.parse(data);
      if (event === "article") this.showNew(body);
      else if (event === "stats") this.showNumbers(body);
      else if (event === "problem") this.showProblem(new Refused(body.status, body.message));
    }
    throw new Refused(0, "The server ended the connection.");
  }

  showAll(latest) {
    this.articles = latest.slice(0, SHOWN);
    $("articles").replaceChildren(...this.articles.map((article) => articleNode(article, this.open)));
    this.afterArticles();
  }

  showNew(article) {
    const list = $("articles");
    this.articles = [article, ...this.articles.filter((one) => one.doc_id !== article.doc_id)].slice(0, SHOWN);
    for (const item of [...list.children]) if (item.dataset.id === article.doc_id) item.remove();
    const item = articleNode(article, this.open);
    item.classList.add("new");
    setTimeout(() => item.classList.remove("new"), 6000);
    list.prepend(item);
    while (list.children.length > SHOWN) list.lastChild.remove();
    this.afterArticles();
  }

  afterArticles() {
    $("stream-empty").hidden = this.articles.length > 0;
    const where = this.namespace() === "default" ? "The memory is empty." : `The memory holds nothing in the namespace ${clean(this.namespace())}.`;
    setText("stream-empty", `${where} Articles appear here seconds after they are published to Kafka.`);
  }

  showNumbers(stats) {
    this.stats = stats;
    this.seenAt = Date.now();
    showStatus("live", "Live");
    document.body.classList.remove("stale");
    $("problem").hidden = true;
    $("key-box").hidden = true;
    const ingest = stats.ingest;
    counter("c-documents", count(stats.documents));
    counter("c-questions", count(stats.questions_answered));
    counter("c-lag", ingest.lag_records === null ? "–" : count(ingest.lag_records), ingest.lag_records === null ? "" : "waiting");
    if (ingest.freshness_s === null) counter("c-fresh", "–");
    else counter("c-fresh", ...duration(ingest.freshness_s));
    setText("n-rate", ingest.records_per_s === null ? "speed unknown" : `${count(ingest.records_per_s)} records/s`);
    if (ingest.lag_records === null) setText("n-rate", "unknown: Kafka can't be asked");
    counter("c-dead", ingest.dead_letters === null ? "–" : count(ingest.dead_letters));
    setText("n-dead", deadNote(ingest.dead_letters));
    $("dead").classList.toggle("alarm", ingest.dead_letters > 0);
    setText("foot", `Checkpoint ${stats.model_id}, bank version ${count(stats.version)}`);
    this.onNumbers(stats);
    this.tick();
  }

  // Once a second: ages grow, and the charts move on.
  tick() {
    const stats = this.stats;
    if (!stats) return;
    setText("n-documents", stats.latest_ingested_at ? `latest ${ago(stats.latest_ingested_at)}` : "none yet");
    setText("n-bank", `${count(stats.rows)} memories${stats.bytes ? `, ${bytes(stats.bytes)}` : ""}`);
    this.sparks.documents.push(stats.documents, `Documents in memory: ${stats.documents}`);
    this.sparks.lag.push(stats.ingest.lag_records, `Records waiting: ${stats.ingest.lag_records ?? "unknown"}`);
    this.sparks.fresh.push(stats.ingest.freshness_s, `Seconds from Kafka to answerable: ${stats.ingest.freshness_s ?? "unknown"}`);
    refreshTimes();
  }

  showProblem(error) {
    document.body.classList.add("stale");
    $("problem").hidden = error.status === 401;
    setText("problem", explain(error));
    if (error.status === 401) {
      showStatus("wait", "API key needed");
      $("key-box").hidden = false;
    } else if (error.status === 503 || error.status === 429) {
      showStatus("wait", error.message.includes("loading") ? "Loading the model" : "Not ready");
    } else {
      showStatus("down", error.status === 0 ? "Server not reachable" : "Server error");
    }
  }
}

function showStatus(kind, text) {
  $("status").dataset.state = kind;
  setText("status-text", text);
}

function counter(id, value, unit) {
  const node = $(id);
  if (node.textContent === `${value}${unit || ""}`) return;
  node.textContent = value;
  if (unit) node.append(make("small", "", unit));
}

function deadNote(letters) {
  if (letters === null) return "unknown";
  return letters ? "unreadable, kept aside" : "every record was read";
}

function articleNode(article, open) {
  const item = make("li");
  item.dataset.id = article.doc_id;
  const about = make("div", "about");
  if (article.updated) about.append(make("span", "tag", "updated"), " ");
  about.append(joined([article.source && outside("span", "", article.source), timeNode(article.published_at || article.ingested_at)]));
  item.append(titleButton(article, open), about);
  return item;
}
