// The two conversations at the side: with everybody in the room, and, for oneself, with an agent of AI Core.

import { api, events, request } from "./api.js";

const KEPT = 200; // lines
const PROMPT = "You help a participant of a video call. Be brief.";

export class Log {
  #list;

  constructor(list) {
    this.#list = list;
  }

  // Returns the element whose text may still grow (`text` is never read as HTML).
  add(who, text, kind = "") {
    const item = document.createElement("li");
    if (kind) item.className = kind;
    const by = document.createElement("span");
    by.className = "who";
    by.textContent = who;
    const said = document.createElement("span");
    said.textContent = text;
    item.append(...(who ? [by] : []), said);
    this.#list.append(item);
    while (this.#list.children.length > KEPT) this.#list.firstChild.remove();
    this.follow();
    return { said, by };
  }

  note(text) {
    return this.add("", text, "note");
  }

  follow() {
    this.#list.scrollTop = this.#list.scrollHeight;
  }
}

const time = () => new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

// `send(text)`: false when it could not be sent.
export class RoomChat {
  #log;

  constructor(form, list, send) {
    this.#log = new Log(list);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = form.elements.text.value.trim();
      if (!text) return;
      if (!send(text)) return this.#log.note("Not connected now; your message was not sent.");
      this.#log.add(`You · ${time()}`, text, "mine");
      form.reset();
    });
  }

  received(name, text) {
    this.#log.add(`${name} · ${time()}`, text);
  }
}

export class AgentChat {
  #form;
  #choice;
  #log;
  #conversation = null;
  #running = null;

  constructor(form, choice, list) {
    this.#form = form;
    this.#choice = choice;
    this.#log = new Log(list);
    form.addEventListener("submit", (event) => this.#submit(event));
    choice.addEventListener("change", () => (this.#conversation = null));
  }

  // Looks for the caller's agents; again each time the panel is opened.
  async refresh() {
    if (this.#running) return;
    const chosen = this.#choice.value;
    try {
      const { items } = await api.agents();
      const options = items.filter((one) => !one.pending).map((one) => new Option(one.name, one.id));
      this.#choice.replaceChildren(...(options.length ? options : [new Option("Guide (new)", "")]));
      if (options.some((one) => one.value === chosen)) this.#choice.value = chosen;
    } catch (error) {
      this.#log.note(`The agents cannot be listed: ${error.message}`);
    }
  }

  async #submit(event) {
    event.preventDefault();
    const text = this.#form.elements.text.value.trim();
    if (!text || this.#running) return;
    this.#form.reset();
    this.#log.add("You", text, "mine");
    this.#running = new AbortController();
    try {
      await this.#ask(text);
    } catch (error) {
      const again = error.retryAfter ? ` Try again in ${Math.ceil(error.retryAfter)} s.` : "";
      this.#log.note(`${error.message}${again}`);
    } finally {
      this.#running = null;
    }
  }

  async #agent() {
    if (this.#choice.value) return this.#choice.value;
    const made = await api.makeAgent("Guide", PROMPT);
    this.#choice.replaceChildren(new Option("Guide", made.id));
    return made.id;
  }

  async #ask(message) {
    const path = `/api/v1/agents/${encodeURIComponent(await this.#agent())}/chat`;
    const body = { message, conversation_id: this.#conversation };
    const options = { accept: "text/event-stream", signal: this.#running.signal };
    const answer = this.#log.add(this.#choice.selectedOptions[0].text, "…");
    let text = "";
    let whole = false;
    try {
      for await (const [kind, data] of events(await request("POST", path, body, options))) {
        if (kind === "start") this.#began(answer, data);
        else if (kind === "delta") answer.said.textContent = text += data.text;
        else if (kind === "error") this.#log.note(data.message);
        else if (kind === "end") whole = true;
        this.#log.follow();
      }
    } finally {
      if (!whole) answer.said.textContent = text ? `${text} … (broke off)` : "(no answer)";
    }
  }

  #began(answer, data) {
    this.#conversation = data.conversation_id;
    const from = data.fallback_from ? `, instead of ${data.fallback_from}` : "";
    answer.by.textContent += ` · ${data.provider} ${data.model}${from}${data.cached ? ", kept answer" : ""}`;
  }
}
