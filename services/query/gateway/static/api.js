// Talks to the server: JSON, and server-sent events over fetch (EventSource can't send an API key).
export class Refused extends Error {
  constructor(status, message, retryAfter) { super(message); this.status = status; this.retryAfter = retryAfter; }
}

export const useKey = (key) => sessionStorage.setItem("cmt-key", key);

function headers() {
  const key = sessionStorage.getItem("cmt-key");
  return key ? { "Authorization": `Bearer ${key}` } : {};
}

async function send(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server can't be reached.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error?.message || `HTTP ${answer.status}`, answer.headers.get("Retry-After"));
}

export async function getJson(path) {
  return (await send(path, {})).json();
}

// Yields {event, id, data} until the server ends the stream or `signal` does.
export async function* eventsOf(path, options) {
  const answer = await send(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Refused(0, "The connection was cut.");
      });
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = { event: "message", id: "", data: "" };
        for (const line of block.split("\n")) {
          const at = line.indexOf(": ");
          if (at > 0) event[line.slice(0, at)] = line.slice(at + 2);
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The answer to one question: onText(piece) while it is written, then the last chunk with sources and cmt.
export async function streamAnswer(body, signal, onText) {
  const post = {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  };
  let last = null;
  let usage = null;
  for await (const { data } of eventsOf("v1/chat/completions", post)) {
    if (data === "[DONE]") return { ...last, usage };
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message);
    if (chunk.usage) usage = chunk.usage;
    if (chunk.sources) last = chunk;
    const piece = chunk.choices[0]?.delta?.content;
    if (piece) onText(piece);
  }
  throw new Refused(0, "The connection was cut in the middle of the answer.");
}

export function explain(error) {
  if (error.status === 0) return `${error.message} Is it running? The page keeps trying.`;
  if (error.status === 401) return "An API key is needed: enter it below the question.";
  if (error.status === 429) return `Too many questions are waiting. Try again in ${error.retryAfter || "a few"} s.`;
  if (error.status === 503) return `Not ready: ${error.message}.`;
  return error.message;
}
