"use strict";

const byId = (id) => document.getElementById(id);
const seconds = (value) => (value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);
let me = null;
let agentId = null;
let conversationId = null;
let updates = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function log(text) {
  byId("log").prepend(element("li", `${new Date().toLocaleTimeString()}  ${text}`));
  while (byId("log").children.length > 30) byId("log").lastChild.remove();
}

function banner(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
}

function note(method, path, response) {
  const fallback = response.headers.get("x-fallback-used");
  const circuit = response.headers.get("x-circuit-state");
  log(`${method} ${path} → ${response.status}${fallback ? `, fallback ${fallback}` : ""}${circuit ? `, circuit ${circuit}` : ""}`);
}

async function call(method, path, body, headers = {}) {
  const response = await fetch(path, {
    method,
    headers: { ...(body ? { "content-type": "application/json" } : {}), ...headers },
    body: body ? JSON.stringify(body) : undefined,
  });
  const found = response.status === 204 ? null : await response.json();
  note(method, path, response);
  if (found && found.message) banner(found.message);
  return { ok: response.ok, status: response.status, body: found };
}

function showMe(user) {
  me = user;
  const marks = [user.stale ? "data may be outdated" : "", user.pending ? "change pending" : ""].filter(Boolean);
  byId("me").textContent = `${user.display_name} <${user.email}>${marks.length ? ` (${marks.join(", ")})` : ""}`;
  banner(user.stale ? `Data may be outdated (as of ${user.as_of}).` : "");
}

async function refreshMe() {
  if (!me) return;
  const answer = await call("GET", `/api/v1/users/${me.id}`);
  if (answer.ok) showMe(answer.body);
}

async function account(event) {
  event.preventDefault();
  const form = new FormData(event.target);
  const credentials = { email: form.get("email"), password: form.get("password") };
  if (event.submitter.value === "register") {
    const name = form.get("display_name") || credentials.email;
    const made = await call("POST", "/api/v1/users", { ...credentials, display_name: name });
    if (!made.ok) return;
  }
  const answer = await call("POST", "/api/v1/auth/login", credentials);
  if (answer.ok) { banner(""); showMe(answer.body.user); listen(); await rooms(); }
}

async function logout() {
  await call("POST", "/api/v1/auth/logout");
  me = agentId = conversationId = null;
  if (updates) updates.close();
  byId("me").textContent = "Not logged in.";
  byId("rooms").replaceChildren();
}

async function profile(event) {
  event.preventDefault();
  if (!me) return banner("Log in first.");
  const change = { display_name: new FormData(event.target).get("display_name") };
  const answer = await call("PATCH", `/api/v1/users/${me.id}`, change, { prefer: "respond-async" });
  if (answer.status === 200) showMe(answer.body);
  else await refreshMe();
}

async function room(event) {
  event.preventDefault();
  const answer = await call("POST", "/api/v1/rooms", { name: new FormData(event.target).get("name") });
  if (answer.ok) await rooms();
}

async function rooms() {
  const answer = await call("GET", "/api/v1/rooms?limit=20");
  if (answer.ok) byId("rooms").replaceChildren(...answer.body.items.map(roomLine));
}

function roomLine({ id, name }) {
  const line = element("li", `${name} `);
  const open = element("a", "open call");
  open.href = `/call/${encodeURIComponent(id)}`;
  open.setAttribute("aria-label", `open call in ${name}`);
  line.append(open);
  return line;
}

async function chat(event) {
  event.preventDefault();
  if (!agentId) {
    const made = await call("POST", "/api/v1/agents", { name: "Guide", system_prompt: "Be brief." });
    if (!made.ok) return;
    agentId = made.body.id;
  }
  const message = new FormData(event.target).get("message");
  const path = `/api/v1/agents/${agentId}/chat`;
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ message, conversation_id: conversationId }),
  });
  note("POST", path, response);
  if (!response.ok) return banner((await response.json()).message);
  let by = "";
  let whole = false;
  byId("reply").textContent = "";
  for await (const [kind, data] of events(response)) {
    if (kind === "start") {
      conversationId = data.conversation_id;
      const from = data.fallback_from ? `, instead of ${data.fallback_from}` : "";
      const kept = data.cached ? `, kept answer of ${data.as_of}` : "";
      by = ` (${data.provider}, ${data.model}${data.simulated ? ", simulated" : ""}${from}${kept})`;
    } else if (kind === "delta") byId("reply").textContent += data.text;
    else if (kind === "error") banner(data.message);
    else if (kind === "end") {
      whole = true;
      if (data.degraded) log(`answered with ${data.fallbacks.join(", ")}`);
    }
  }
  byId("reply").textContent += whole ? by : ` … broke off${by}`;
}

// The events of an answer (server-sent events that a POST gave, which EventSource cannot ask for).
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const [kind, data] = block.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
        yield [kind, JSON.parse(data)];
      }
    }
  } catch {
    banner("The connection broke off.");
  }
}

// What happens, as it happens: the mode as a notice, the rest as lines. The browser comes back by itself when it is cut.
const NOTICES = {
  normal: "",
  degraded: "Parts of the platform are away. What you see may be outdated; your changes are kept.",
  emergency: "Much of the platform is away. Only the essential works; live updates are off.",
};

function listen() {
  if (updates) updates.close();
  updates = new EventSource("/api/v1/events");
  updates.addEventListener("mode", (event) => {
    const { mode } = JSON.parse(event.data);
    byId("notice").textContent = NOTICES[mode] || "";
    byId("notice").hidden = !NOTICES[mode];
  });
  for (const kind of ["circuit", "queue", "room", "call", "agent", "user"]) {
    updates.addEventListener(kind, (event) => {
      const { type, subject, to, depth } = JSON.parse(event.data);
      if (type) log(`${type} ${subject}${to ? `: ${to}` : ""}`);
      else if (depth) log(`${depth} changes waiting`);
    });
  }
}

function matrixRow(service, row) {
  const line = document.createElement("tr");
  const cells = [
    `${row.label} ${row.row}`, row.title || row.dependency, row.priority, row.circuit, row.fallback || "",
    String(row.queue_depth || ""), seconds(row.state_seconds || 0), row.last_error || "",
  ];
  line.append(...cells.map((text, index) => element("td", text, index === 3 ? row.circuit : "")));
  return line;
}

function unreachable(service) {
  const line = document.createElement("tr");
  const cell = element("td", `${service.service} does not answer`, "unreachable");
  cell.colSpan = 8;
  line.append(cell);
  return line;
}

async function refreshMatrix() {
  try {
    const { services } = await (await fetch("/api/v1/matrix")).json();
    byId("modes").textContent = services.map((service) => `${service.service}: ${service.mode}`).join(" · ");
    byId("rows").replaceChildren(...services.flatMap((service) =>
      service.reachable ? service.rows.map((row) => matrixRow(service, row)) : [unreachable(service)]));
  } catch {
    byId("modes").textContent = "The Dashboard does not answer.";
  }
  setTimeout(refreshMatrix, 1000);
}

byId("register").addEventListener("submit", account);
byId("logout").addEventListener("click", logout);
byId("profile").addEventListener("submit", profile);
byId("room").addEventListener("submit", room);
byId("chat").addEventListener("submit", chat);
setInterval(refreshMe, 5000);
refreshMatrix();
