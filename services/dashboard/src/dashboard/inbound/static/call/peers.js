// Media from peer to peer: one RTCPeerConnection to each other participant, by perfect negotiation.
// https://www.w3.org/TR/webrtc/#perfect-negotiation-example

const SLOW = 5_000; // ms from both descriptions on, after which a path counts as failed; it may still come up
const SLOW_WITHOUT_RELAY = 500; // ms for ICE alone; where no relay can help, the SFU is to take over soon
const UNANSWERED = 4_000; // ms after which an offer is sent again
const OTHER_RESTARTS = 2_000; // ms that the polite side leaves to the owner of the restart, with jitter
const SOON = 1_000; // ms before a negotiation that failed begins anew; the polite side leaves it to the other
const LATER = 3_000;
const QUIET = 700; // ms without media after which it does not flow
const RELAY = /^turns?:/;

export const withoutRelay = (servers) =>
  servers
    .map((one) => ({ ...one, urls: [one.urls].flat().filter((url) => !RELAY.test(url)) }))
    .filter((one) => one.urls.length);
export const hasRelay = (servers) => servers.some((one) => [one.urls].flat().some((url) => RELAY.test(url)));

// One other participant. Each RTCPeerConnection has a name of its own (`pc`), which every signal carries with that of
// the one it is meant for: so both sides notice when the other, loaded again perhaps, begins anew.
export class Peer {
  #mesh;
  #making = false;
  #ignoring = false;
  #answering = false;
  #theirs = ""; // the name of the other side's connection
  #begun = false; // with our offer, which nobody has answered yet
  #offered = 0; // since when an offer is out
  #slow = null;
  #rescue = null;
  #rescues = 0;
  #withoutRelay = false; // while the relay may be dead

  constructor(mesh, id) {
    this.#mesh = mesh;
    this.id = id;
    this.polite = mesh.self > id;
    this.stream = new MediaStream();
    this.watched = {}; // what stats.js knows of this connection
    this.#make();
  }

  #make() {
    this.#forget();
    this.name = crypto.randomUUID().slice(0, 8);
    this.#theirs = "";
    this.#making = this.#ignoring = this.#answering = this.#begun = false;
    this.watched = {};
    const pc = (this.pc = new RTCPeerConnection(this.#mesh.configuration(this.#withoutRelay)));
    pc.onnegotiationneeded = () => this.#offer(pc);
    pc.onicecandidate = ({ candidate }) => candidate && this.#say({ candidate });
    pc.ontrack = ({ track }) => this.#received(track);
    pc.onconnectionstatechange = () => this.#changed(pc);
    pc.onsignalingstatechange = () => this.#timed(pc);
  }

  #forget() {
    clearTimeout(this.#slow);
    clearTimeout(this.#rescue);
    this.#slow = this.#rescue = null;
    if (!this.pc) return;
    this.pc.onnegotiationneeded = this.pc.onicecandidate = this.pc.ontrack = null;
    this.pc.onconnectionstatechange = this.pc.onsignalingstatechange = null;
    this.pc.close();
    for (const track of this.stream.getTracks()) this.stream.removeTrack(track);
  }

  // Begins: offers to send and receive both kinds, whether there is something to send now or not.
  begin() {
    this.#begun = true;
    for (const kind of ["audio", "video"]) {
      const track = this.#mesh.tracks[kind];
      this.pc.addTransceiver(track || kind, { direction: "sendrecv", streams: [this.#mesh.local] });
    }
  }

  anew() {
    this.#make();
    this.begin();
  }

  close() {
    this.#forget();
  }

  async replaceTrack(kind, track) {
    const mine = this.#transceiver(kind);
    if (mine) await mine.sender.replaceTrack(track);
  }

  #transceiver(kind) {
    return this.pc.getTransceivers().find((one) => !one.stopped && one.receiver.track.kind === kind);
  }

  async #offer(pc) {
    try {
      this.#making = true;
      await pc.setLocalDescription();
      this.#describe(pc);
    } catch (error) {
      this.#failed(pc, error);
    } finally {
      if (pc === this.pc) this.#making = false;
    }
  }

  #describe(pc) {
    if (pc !== this.pc) return;
    this.#offered = pc.localDescription.type === "offer" ? Date.now() : 0;
    this.#say({ description: pc.localDescription, without_relay: this.#withoutRelay });
  }

  #say(data) {
    return this.#mesh.send(this.id, { pc: this.name, to_pc: this.#theirs || null, ...data });
  }

  // What the other side says.
  async signal({ pc: theirs, to_pc: mine, description, candidate, without_relay, sfu }) {
    if (mine && mine !== this.name) return; // was meant for a connection that is no more
    const other = this.#theirs && theirs !== this.#theirs;
    if (other && description?.type === "offer") this.#make();
    else if (other && description) return this.anew(); // it took an offer that we gave up for its predecessor's
    const pc = this.pc;
    try {
      if (description) await this.#described(pc, theirs, description, Boolean(without_relay));
      else if (candidate && theirs === this.#theirs) await this.#candidate(pc, candidate);
      else if (sfu) this.#mesh.forwarded(this.id);
    } catch (error) {
      this.#failed(pc, error);
    }
  }

  async #described(pc, theirs, description, withoutRelay) {
    const isOffer = description.type === "offer";
    const ready = !this.#making && (pc.signalingState === "stable" || this.#answering);
    this.#ignoring = !this.polite && isOffer && !ready;
    if (this.#ignoring) return this.#insist(pc);
    if (!isOffer && (this.#answering || pc.signalingState !== "have-local-offer")) return; // answered twice
    if (isOffer && this.#begun) {
      // What was prepared here for the first offer has no place in theirs, and cannot be taken back: begin with theirs.
      this.#make();
      pc = this.pc;
    }
    this.#theirs = theirs;
    this.#begun = false;
    if (isOffer) this.#configure(withoutRelay); // both sides must gather alike
    this.#answering = !isOffer;
    try {
      await pc.setRemoteDescription(description);
    } finally {
      this.#answering = false;
    }
    if (!isOffer) return;
    await this.#adopt(pc);
    await pc.setLocalDescription();
    this.#describe(pc);
  }

  // Two offers crossed, and ours counts. One that the other side's connection may be too new to have got is said again.
  #insist(pc) {
    if (!this.#theirs && pc.signalingState === "have-local-offer") this.#describe(pc);
  }

  async #candidate(pc, candidate) {
    try {
      await pc.addIceCandidate(candidate);
    } catch (error) {
      if (!this.#ignoring) throw error;
    }
  }

  // Sends on what the other side has offered.
  async #adopt(pc) {
    const all = pc.getTransceivers();
    for (const one of all.filter((one) => !one.stopped && one.direction !== "sendrecv")) {
      one.direction = "sendrecv";
      one.sender.setStreams(this.#mesh.local);
      await one.sender.replaceTrack(this.#mesh.tracks[one.receiver.track.kind]);
    }
  }

  #received(track) {
    for (const old of this.stream.getTracks()) if (old.kind === track.kind) this.stream.removeTrack(old);
    this.stream.addTrack(track);
    this.#mesh.changed(this);
  }

  #failed(pc, error) {
    if (pc !== this.pc || pc.signalingState === "closed") return; // of a connection that was given up meanwhile
    console.warn(`negotiation with ${this.id}: ${error.name}: ${error.message}`);
    this.#mesh.later(() => pc === this.pc && !this.connected && this.anew(), this.polite ? LATER : SOON);
  }

  // --- the path

  get connected() {
    return this.pc.connectionState === "connected";
  }

  #timed(pc) {
    if (pc.signalingState === "stable") this.#offered = 0;
    if (pc.signalingState !== "stable" || this.connected || this.#slow) return;
    const relay = hasRelay(pc.getConfiguration().iceServers || []);
    const slow = () => !this.connected && (relay || !["connected", "completed"].includes(pc.iceConnectionState));
    this.#slow = setTimeout(() => slow() && this.#mesh.path(this, "failed"), relay ? SLOW : SLOW_WITHOUT_RELAY);
  }

  #changed(pc) {
    const state = pc.connectionState;
    if (state === "connected") {
      clearTimeout(this.#slow);
      clearTimeout(this.#rescue);
      this.#slow = this.#rescue = null;
      this.#mesh.path(this, "connected");
    } else if (state === "failed") {
      this.#mesh.path(this, "failed");
      this.rescue();
    }
    this.#mesh.changed(this);
  }

  // The media has stopped. First without the relay, which may be what died, then with everything again, and so on.
  rescue() {
    if (this.#rescue) return;
    this.#rescues += 1;
    this.#configure(this.#rescues % 2 === 1);
    if (this.#rescues % 2 === 0) this.#mesh.askServers();
    this.restart();
  }

  // One side owns the restart, since two at a time only get in each other's way; the other one comes in late.
  restart() {
    clearTimeout(this.#rescue);
    const pc = this.pc;
    const again = () => {
      this.#rescue = null;
      if (pc === this.pc && !this.#flows()) this.rescue();
    };
    const owned = () => {
      pc.restartIce();
      this.#rescue = setTimeout(again, SLOW);
    };
    if (!this.polite) return owned();
    this.#rescue = setTimeout(
      () => pc === this.pc && !this.#flows() && owned(),
      OTHER_RESTARTS * (1 + Math.random() / 2),
    );
  }

  #flows() {
    return this.connected && this.watched.quiet < QUIET;
  }

  #configure(withoutRelay) {
    this.#withoutRelay = withoutRelay;
    this.pc.setConfiguration(this.#mesh.configuration(withoutRelay));
  }

  serversChanged(restart) {
    if (restart) this.#rescues = 0;
    this.#configure(restart ? false : this.#withoutRelay);
    if (restart) this.restart();
  }

  // An offer or its answer was lost on the way: says it again.
  remind() {
    if (this.pc.signalingState === "have-local-offer" && this.#offered && Date.now() - this.#offered > UNANSWERED) {
      this.#describe(this.pc);
    }
  }

  forwarded() {
    this.#say({ sfu: true });
  }
}

// All other participants. `hooks`: send(to, data), changed(peer), path(peer, state), forwarded(id), askServers().
export class Mesh {
  #hooks;
  #relayOnly;
  #servers = [];
  #timers = new Set();
  #expected = new Map(); // participants that are to begin, and the timer after which we do
  #reminder;

  constructor(self, local, tracks, hooks, relayOnly = false) {
    this.self = self;
    this.local = local;
    this.tracks = tracks;
    this.peers = new Map();
    this.#hooks = hooks;
    this.#relayOnly = relayOnly;
    this.#reminder = setInterval(() => this.peers.forEach((peer) => peer.remind()), 1000);
  }

  configuration(without) {
    const servers = without ? withoutRelay(this.#servers) : this.#servers;
    const policy = this.#relayOnly && hasRelay(servers) ? "relay" : "all";
    return { iceServers: servers, iceTransportPolicy: policy, bundlePolicy: "max-bundle" };
  }

  setServers(servers, restart = false) {
    this.#servers = servers;
    for (const peer of this.peers.values()) peer.serversChanged(restart);
  }

  // Whoever came later offers, so that offers seldom cross; should it not, we do.
  expect(id) {
    if (this.peers.has(id) || this.#expected.has(id)) return;
    this.#expected.set(id, this.later(() => this.meet(id), 3_000));
  }

  expectNobody() {
    for (const id of this.#expected.keys()) this.#come(id);
  }

  meet(id) {
    this.#come(id);
    if (this.peers.has(id)) return;
    this.#peer(id).begin();
  }

  #come(id) {
    clearTimeout(this.#expected.get(id));
    this.#expected.delete(id);
  }

  #peer(id) {
    const peer = new Peer(this, id);
    this.peers.set(id, peer);
    return peer;
  }

  signal(id, data) {
    this.#come(id);
    const known = this.peers.get(id);
    if (!known && data.description?.type !== "offer") return;
    (known || this.#peer(id)).signal(data);
  }

  drop(id) {
    this.#come(id);
    this.peers.get(id)?.close();
    this.peers.delete(id);
  }

  replaceTrack(kind, track) {
    this.tracks[kind] = track;
    return Promise.all([...this.peers.values()].map((peer) => peer.replaceTrack(kind, track)));
  }

  close() {
    for (const id of [...this.peers.keys(), ...this.#expected.keys()]) this.drop(id);
    for (const timer of this.#timers) clearTimeout(timer);
    clearInterval(this.#reminder);
  }

  later(action, wait) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      action();
    }, wait);
    this.#timers.add(timer);
    return timer;
  }

  send = (to, data) => this.#hooks.send(to, data);
  changed = (peer) => this.#hooks.changed(peer);
  path = (peer, state) => this.#hooks.path(peer, state);
  forwarded = (id) => this.#hooks.forwarded(id);
  askServers = () => this.#hooks.askServers();
}
