// Media through the server: one connection that sends ("pub") and one that receives from everybody ("sub"). The server
// has no ICE restart: a connection that failed is replaced by a new one, with a greater `epoch`. Its messages:
// webrtc/outbound/sfu/signals.py.

const CONNECT_LIMIT = 5_000; // ms after which the way to the server counts as blocked
const STALLED = 3_000; // ms of `disconnected` that are waited out
const AGAIN = 700; // ms before a closed connection is asked for again, with jitter
const SILENT = 3_000; // ms for the server to begin

// `hooks`: send(data), tracks(Map of id -> {audio, video}), changed(), blocked(bool), path(state), unsupported(text).
export class Sfu {
  #hooks;
  #local;
  #tracks;
  #servers;
  #epoch = 0; // of what we publish
  #subEpoch = 0;
  #timers = new Map();
  #closed = false;

  constructor(local, tracks, servers, hooks) {
    this.#local = local;
    this.#tracks = tracks;
    this.#servers = servers;
    this.#hooks = hooks;
    this.pub = this.sub = null;
    this.watched = {};
    this.#after("silent", SILENT, () => this.pub || this.resume());
  }

  // After a page was loaded again the server still holds the old connections: both are made anew.
  resume() {
    this.#publish();
    this.#send({ pc: "sub", restart: true });
  }

  setServers(servers) {
    this.#servers = servers; // used by the next connections; these need none to reach a server
  }

  replaceTrack(kind, track) {
    const mine = this.pub?.getTransceivers().find((one) => one.receiver.track.kind === kind);
    return mine?.sender.replaceTrack(track);
  }

  get connected() {
    return this.pub?.connectionState === "connected" || this.sub?.connectionState === "connected";
  }

  close() {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.pub?.close();
    this.sub?.close();
  }

  async signal(data) {
    if (data.livekit) return this.#hooks.unsupported("This room's media goes through LiveKit; use a LiveKit client.");
    if (data.error) return console.warn(`SFU: ${data.error}: ${data.message}`);
    try {
      if (data.pc === "pub") await this.#published(data);
      else if (data.pc === "sub") await this.#subscribed(data);
    } catch (error) {
      console.warn(`SFU ${data.pc}: ${error.name}: ${error.message}`);
      this.#again(data.pc);
    }
  }

  // --- what we send

  #publish() {
    this.#clear("silent");
    this.#clear("pub again");
    this.pub?.close();
    this.#epoch = Math.max(this.#epoch + 1, Date.now());
    const pc = (this.pub = this.#connection("pub", this.#epoch));
    for (const kind of ["audio", "video"]) {
      pc.addTransceiver(this.#tracks[kind] || kind, { direction: "sendonly", streams: [this.#local] });
    }
    this.#offer(pc, this.#epoch);
  }

  async #offer(pc, epoch) {
    await pc.setLocalDescription();
    if (pc === this.pub) this.#send({ pc: "pub", epoch, description: pc.localDescription });
  }

  async #published({ publish, epoch, description, closed }) {
    if (publish) return this.#publish();
    if (epoch !== this.#epoch) return;
    if (closed) return closed === "left" || closed === "ended" || this.#again("pub");
    if (description) await this.pub.setRemoteDescription(description);
  }

  // --- what we receive

  async #subscribed({ epoch, description, tracks, closed }) {
    if (closed) return epoch !== this.#subEpoch || closed === "left" || closed === "ended" || this.#again("sub");
    if (!description) return;
    if (epoch !== this.#subEpoch || !this.sub) this.#receive(epoch);
    const pc = this.sub;
    await pc.setRemoteDescription(description);
    if (pc !== this.sub) return;
    this.#hooks.tracks(this.#mapped(pc, tracks || []));
    await pc.setLocalDescription();
    if (pc === this.sub) this.#send({ pc: "sub", epoch, description: pc.localDescription });
  }

  #receive(epoch) {
    this.#clear("sub again");
    this.sub?.close();
    this.#subEpoch = epoch;
    this.watched = {};
    this.sub = this.#connection("sub", epoch);
  }

  // Sections are used again for other participants, so `tracks` alone says whose is whose.
  #mapped(pc, tracks) {
    const byMid = new Map(pc.getTransceivers().map((one) => [one.mid, one.receiver.track]));
    const found = new Map();
    for (const { mid, participant, kind } of tracks) {
      if (!byMid.has(mid)) continue;
      found.set(participant, { ...found.get(participant), [kind]: byMid.get(mid) });
    }
    return found;
  }

  // --- both

  #connection(which, epoch) {
    const pc = new RTCPeerConnection({ iceServers: this.#servers, bundlePolicy: "max-bundle" });
    const current = () => pc === this[which];
    pc.onicecandidate = ({ candidate }) => candidate && current() && this.#send({ pc: which, epoch, candidate });
    pc.onconnectionstatechange = () => current() && this.#changed(which, pc);
    this.#after(which, CONNECT_LIMIT, () => this.#blocked(which, pc));
    return pc;
  }

  #blocked(which, pc) {
    if (pc !== this[which] || pc.connectionState === "connected") return;
    if (pc.remoteDescription) { // else the server has not answered, which is no matter of the network
      this.#hooks.blocked(true);
      this.#hooks.path("failed");
    }
    this.#again(which);
  }

  #changed(which, pc) {
    const state = pc.connectionState;
    this.#clear(which);
    if (state === "connected") {
      this.#hooks.blocked(false);
      if (which === "pub") this.#hooks.path("connected");
    } else if (state === "failed") this.#blocked(which, pc);
    else if (state === "disconnected") {
      this.#after(which, STALLED, () => pc === this[which] && pc.connectionState !== "connected" && this.#again(which));
    } else this.#after(which, CONNECT_LIMIT, () => this.#blocked(which, pc));
    this.#hooks.changed();
  }

  #again(which) {
    const ask = () => (which === "pub" ? this.#publish() : this.#send({ pc: "sub", restart: true }));
    this.#after(`${which} again`, AGAIN * (1 + Math.random()), ask);
  }

  // The media we receive has stopped, though somebody sends.
  rescue() {
    if (!this.#timers.has("sub again")) this.#again("sub");
  }

  #send(data) {
    if (!this.#closed) this.#hooks.send(data);
  }

  #after(name, wait, action) {
    this.#clear(name);
    if (this.#closed) return;
    this.#timers.set(name, setTimeout(() => this.#timers.delete(name) && action(), wait));
  }

  #clear(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
