// The connection to the room's signalling: comes back by itself, and resumes where it was cut off, so that the others
// see no leave. Its messages and close codes: webrtc/usecases/signalling/messages.py and webrtc/model.py.

const CONNECT_LIMIT = 6_000; // ms until the welcome
const SILENCE_LIMIT = 15_000; // ms without a word from the server, which answers a ping every PING
const PING = 8_000;
const ACK_EVERY = 32; // messages; or after ACK_AFTER
const ACK_AFTER = 1_000; // ms
const FIRST_WAIT = 400; // ms; doubled with each failure
const LONGEST_WAIT = 10_000;
const RESUMABLE = 30_000; // ms for which the server keeps a place (a reload within that time resumes)
const EARLIEST_EXPIRY = 30; // s before its end a join token counts as expired

const FINAL = {
  4403: ["kicked", "You were removed from this call."],
  4404: ["gone", "There is no such room. It may have been closed."],
  4409: ["full", "This room is full."],
  4410: ["gone", "This room was closed."],
  4421: ["replaced", "You joined this call again elsewhere, so it ended here."],
};

export class Signalling {
  #ticketOf;
  #memory;
  #handlers = new Map();
  #socket = null;
  #ticket = null;
  #ticketUntil = 0;
  #resume;
  #seq;
  #acked = 0;
  #failures = 0;
  #retryAfter = 0; // s, as the server told
  #welcomed = false;
  #closed = false;
  #refusedTokens = 0;
  #timers = {};
  #heard = 0;
  #held = null; // what came before the welcome of a page that was loaded again

  // ticketOf: () => Promise of {token, ws_url, expires_in}. memory: where {resume, seq} survive a reload.
  constructor(ticketOf, memory) {
    this.#ticketOf = ticketOf;
    this.#memory = memory;
    const kept = memory.read();
    const fresh = kept && Date.now() - kept.at < RESUMABLE;
    this.#resume = fresh ? kept.resume : "";
    this.#seq = fresh ? kept.seq : 0;
    this.#held = this.#resume ? [] : null;
    addEventListener("online", () => this.#hurry());
    addEventListener("pagehide", () => this.#remember());
  }

  // Messages by their type; and of its own: "state" ({state: connecting|connected|waiting|ended, ...}).
  on(type, handler) {
    this.#handlers.set(type, handler);
    return this;
  }

  get connected() {
    return this.#welcomed;
  }

  // False: it is not connected now, and the message is lost.
  send(message) {
    if (!this.#welcomed || this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  start() {
    this.#closed = false;
    this.#open();
  }

  leave() {
    this.send({ type: "leave" });
    this.#end("left", "You can join again at any time.");
  }

  async #open() {
    this.#stopTimers();
    this.#tell("state", { state: "connecting", attempt: this.#failures });
    try {
      await this.#freshTicket();
    } catch (error) {
      return this.#ticketFailed(error);
    }
    if (this.#closed) return;
    const url = new URL(this.#ticket.ws_url);
    url.searchParams.set("token", this.#ticket.token);
    if (this.#resume) {
      url.searchParams.set("resume", this.#resume);
      url.searchParams.set("seq", String(this.#seq));
    }
    this.#listen(new WebSocket(url));
  }

  #listen(socket) {
    this.#socket = socket;
    this.#heard = Date.now();
    socket.onmessage = (event) => socket === this.#socket && this.#receive(event.data);
    socket.onclose = (event) => socket === this.#socket && this.#lost(event.code);
    this.#timers.connect = setTimeout(() => this.#abandon(), CONNECT_LIMIT);
    this.#timers.ping = setInterval(() => this.#ping(), PING);
  }

  #ping() {
    if (Date.now() - this.#heard > SILENCE_LIMIT) this.#abandon();
    else this.send({ type: "ping" });
  }

  // A dead connection may take minutes to close: it is left to itself.
  #abandon() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#lost(1006);
  }

  #receive(text) {
    this.#heard = Date.now();
    const message = JSON.parse(text);
    if (message.seq) this.#number(message.seq);
    if (message.type === "refused") this.#retryAfter = message.retry_after || 0;
    if (message.type === "error" && message.error === "RESTARTING") this.#retryAfter = message.retry_after || 0;
    if (message.type === "welcome") return this.#welcome(message);
    if (this.#held) this.#held.push(message);
    else this.#tell(message.type, message);
  }

  #number(seq) {
    this.#seq = seq;
    if (seq - this.#acked >= ACK_EVERY) this.#ack();
    else this.#timers.ack ??= setTimeout(() => this.#ack(), ACK_AFTER);
  }

  #ack() {
    clearTimeout(this.#timers.ack);
    this.#timers.ack = undefined;
    if (this.send({ type: "ack", seq: this.#seq })) this.#acked = this.#seq;
    this.#remember();
  }

  #welcome(message) {
    clearTimeout(this.#timers.connect);
    this.#welcomed = true;
    this.#failures = this.#retryAfter = this.#refusedTokens = 0;
    this.#resume = message.resume;
    this.#acked = 0;
    this.#remember();
    const held = this.#held || [];
    this.#held = null;
    this.#tell("state", { state: "connected" });
    this.#tell("welcome", message);
    // A page that was loaded again knows the present from the welcome; of what it missed only what peers said counts.
    for (const missed of held) if (["signal", "data"].includes(missed.type)) this.#tell(missed.type, missed);
  }

  #lost(code) {
    this.#stopTimers();
    this.#welcomed = false;
    if (this.#closed) return;
    if (FINAL[code]) return this.#end(...FINAL[code]);
    if (code === 4401) {
      this.#ticket = null;
      this.#refusedTokens += 1;
      if (this.#refusedTokens > 3) return this.#end("refused", "The server does not accept your place in this call.");
      if (this.#refusedTokens === 1) return this.#open();
    }
    this.#wait();
  }

  // Full jitter around an exponential back-off; never before the server said.
  #wait() {
    const limit = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures++);
    const told = this.#retryAfter * 1000;
    const wait = told ? told * (1 + Math.random() / 4) : limit * (0.5 + Math.random() / 2);
    this.#retryAfter = 0;
    this.#tell("state", { state: "waiting", seconds: wait / 1000, attempt: this.#failures });
    this.#timers.retry = setTimeout(() => this.#open(), wait);
  }

  #hurry() {
    if (this.#closed) return;
    if (this.#timers.retry) this.#open();
    else if (this.#welcomed) this.#ping();
  }

  async #freshTicket() {
    if (this.#ticket && Date.now() < this.#ticketUntil) return;
    this.#ticket = await this.#ticketOf();
    this.#ticketUntil = Date.now() + (this.#ticket.expires_in - EARLIEST_EXPIRY) * 1000;
  }

  #ticketFailed(error) {
    if (this.#closed) return;
    if (error.status === 401) return this.#end("login", "Log in to join this call.");
    if (error.status === 404) return this.#end(...FINAL[4404]);
    if ([400, 403, 422].includes(error.status)) return this.#end("refused", error.message);
    if (error.status) this.#tell("refused", { message: error.message, retry_after: error.retryAfter });
    this.#retryAfter = error.retryAfter || 0;
    this.#wait();
  }

  #end(reason, text) {
    this.#closed = true;
    this.#stopTimers();
    this.#welcomed = false;
    this.#memory.clear();
    this.#resume = "";
    this.#seq = 0;
    this.#socket?.close(1000);
    this.#socket = null;
    this.#tell("state", { state: "ended", reason, text });
  }

  #remember() {
    if (this.#resume && !this.#closed) this.#memory.write({ resume: this.#resume, seq: this.#seq, at: Date.now() });
  }

  #stopTimers() {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#timers = {};
  }

  #tell(type, message) {
    this.#handlers.get(type)?.(message);
  }
}

// A place in a room that survives a reload of this tab, and of this tab only: two tabs are two participants.
// (A duplicated tab copies the session's storage; the newer connection wins, and the older tab says so.)
export function tabMemory(room) {
  const key = `auralink.call.${room}`;
  return {
    read() {
      try {
        return JSON.parse(sessionStorage.getItem(key));
      } catch {
        return null;
      }
    },
    write: (value) => sessionStorage.setItem(key, JSON.stringify(value)),
    clear: () => sessionStorage.removeItem(key),
  };
}
