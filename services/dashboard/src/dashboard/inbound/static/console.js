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

async function call(method, path, body, headers = {}) {
  const response = await fetch(path, {
    method,
    headers: { ...(body ? { "content-type": "application/json" } : {}), ...headers },
    body: body ? JSON.stringify(body) : undefined,
  });
  const found = response.status === 204 ? null : await response.json();
  const fallback = response.headers.get("x-fallback-used");
  const circuit = response.headers.get("x-circuit-state");
  log(`${method} ${path} → ${response.status}${fallback ? `, fallback ${fallback}` : ""}${circuit ? `, circuit ${circuit}` : ""}`);
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
  if (answer.ok) { banner(""); showMe(answer.body.user); listen(); }
}

async function logout() {
  await call("POST", "/api/v1/auth/logout");
  me = agentId = conversationId = null;
  if (updates) updates.close();
  byId("me").textContent = "Not logged in.";
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
  if (answer.ok) byId("rooms").append(element("li", `${answer.body.name} (${answer.body.id})`));
}

async function chat(event) {
  event.preventDefault();
  if (!agentId) {
    const made = await call("POST", "/api/v1/agents", { name: "Guide", system_prompt: "Be brief." });
    if (!made.ok) return;
    agentId = made.body.id;
  }
  const message = new FormData(event.target).get("message");
  const answer = await call("POST", `/api/v1/agents/${agentId}/chat`, { message, conversation_id: conversationId });
  if (!answer.ok) return;
  conversationId = answer.body.conversation_id;
  const by = `${answer.body.provider}, ${answer.body.model}${answer.body.simulated ? ", simulated" : ""}`;
  byId("reply").textContent = `${answer.body.reply} (${by})`;
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
