// The Dashboard's API as the page needs it: answers as values, refusals as errors that say when to come back.

const LIMIT = 10_000; // ms for one request

export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super((body && body.message) || `The server answered ${status}.`);
    this.status = status;
    this.retryAfter = retryAfter; // s; 0 when the server did not say
  }
}

export async function request(method, path, body, { accept = "application/json", signal } = {}) {
  const response = await fetch(path, {
    method,
    headers: { accept, ...(body ? { "content-type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
    signal: signal || AbortSignal.timeout(LIMIT),
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ApiError(response.status, said, Number(response.headers.get("retry-after")) || 0);
}

async function json(method, path, body) {
  return (await request(method, path, body)).json();
}

export const api = {
  me: () => json("GET", "/api/v1/auth/me"),
  login: (email, password) => json("POST", "/api/v1/auth/login", { email, password }),
  ticket: (room, name) => json("POST", `/api/v1/rooms/${encodeURIComponent(room)}/token`, name ? { name } : undefined),
  agents: () => json("GET", "/api/v1/agents?limit=100"),
  makeAgent: (name, prompt) => json("POST", "/api/v1/agents", { name, system_prompt: prompt }),
};

// The events of an answer that a POST gave as server-sent events, which EventSource cannot ask for. The format:
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found.data) yield [found.event, JSON.parse(found.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const found = { event: "message", data: "" };
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon < 1) continue; // a comment, or a field without a value
    const value = line.slice(colon + 1).replace(/^ /, "");
    const name = line.slice(0, colon);
    found[name] = name === "data" && found.data ? `${found.data}\n${value}` : value;
  }
  return found;
}

// What a join token allows: just to know which buttons to show, the server decides.
export function grants(token) {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(part)).grants || {};
  } catch {
    return {};
  }
}
