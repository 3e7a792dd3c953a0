// One call: signalling says who is there and how media goes; peers.js and sfu.js carry it, stats.js watches it, view.js
// shows it.

import { api, grants } from "./api.js";
import { hasRelay, Mesh } from "./peers.js";
import { Sfu } from "./sfu.js";
import { Signalling, tabMemory } from "./signalling.js";
import { decoded, look, Watch } from "./stats.js";
import { banner, byId, chip, notice, roster, show, toggle, unnotice } from "./view.js";

const HANDOVER = 5_000; // ms after which direct media ends although the other side has not said that it may
const FRAME = 50; // ms between looks for a first frame
const STUN_ONLY = "The relay server is away. Where a direct connection is not possible, media goes through our server.";
const SINGLE =
  "Our servers do not reach each other now: you reach those who are on the same one, and the call goes on.";
const BLOCKED =
  "Your network lets no media through (UDP seems to be blocked), so the others cannot see or hear you. " +
  "We keep trying; another network would help.";
const MESSAGES = [
  ...["state", "welcome", "joined", "updated", "left", "signal", "media", "ice"],
  ...["degraded", "mute", "data", "error", "refused"],
];

export class Call {
  #room;
  #relay;
  #page;
  #devices;
  #signalling;
  #watch;
  #mesh = null;
  #sfu = null;
  #forwarded = new Map(); // participant -> {stream, flows, told}: what comes through the SFU
  #servers = [];
  #stunOnly = false;
  #degraded = { rows: [], single_instance: false };
  #moderates = false;
  #problems = new Map(); // participant -> why there is no media

  // `relay`: media to the others goes through TURN while there is one. `page`: tiles, sends(what is sent now),
  // chat(name, text), ended(reason, text).
  constructor(room, devices, name, relay, page) {
    this.#room = room;
    this.#devices = devices;
    this.#relay = relay;
    this.#page = page;
    this.people = new Map();
    this.self = "";
    this.mode = "p2p";
    this.connection = "connecting";
    this.#signalling = new Signalling(() => this.#ticket(name), tabMemory(room));
    for (const type of MESSAGES) this.#signalling.on(type, (message) => this[`on_${type}`](message));
    const report = (figures) => this.#signalling.send({ type: "stats", report: figures });
    this.#watch = new Watch(() => this.#links(), report);
    devices.ended = (kind) => this.set(kind, false);
  }

  start() {
    show("call");
    byId("mic").focus();
    this.render();
    this.#signalling.start();
  }

  leave() {
    this.#signalling.leave();
  }

  async #ticket(name) {
    const ticket = await api.ticket(this.#room, name);
    this.#moderates = Boolean(grants(ticket.token).moderate);
    return ticket;
  }

  // --- what the server says

  on_state({ state, seconds, reason, text }) {
    this.connection = state;
    if (state === "connected") (chip("status", ""), unnotice("refused"));
    else if (state === "ended") return this.#end(reason, text);
    else if (this.self) chip("status", "reconnecting …", true);
    else chip("status", state === "waiting" ? `trying again in ${Math.ceil(seconds)} s` : "connecting …", true);
  }

  on_welcome({ participant, participants, room: about, media, ice_servers, degraded, single_instance, resumed }) {
    byId("room-name").textContent = document.title = about.name;
    const again = this.#mesh !== null && this.self === participant;
    this.self = participant;
    this.people = new Map(participants.map((one) => [one.id, one]));
    this.#degraded = { rows: degraded || [], single_instance };
    this.#takeServers(ice_servers);
    if (!again) this.#begin();
    this.#mesh.setServers(ice_servers);
    this.#tellMedia();
    this.#setMode(media.mode, resumed && !again);
    this.#meetAll(again);
    this.render();
  }

  // New connections to everybody: this page was not in the call, or is somebody else now.
  #begin() {
    this.#stop();
    const hooks = {
      send: (to, data) => this.#signalling.send({ type: "signal", to, data }),
      changed: () => this.render(),
      path: (peer, state) => this.#path(peer, state),
      forwarded: (id) => this.#told(id),
      askServers: () => this.#signalling.send({ type: "ice" }),
    };
    this.#mesh = new Mesh(this.self, this.#devices.local, { ...this.#devices.tracks }, hooks, this.#relay);
  }

  #meetAll(again) {
    for (const id of this.#mesh.peers.keys()) if (!this.people.has(id)) this.#mesh.drop(id);
    if (this.mode === "p2p") for (const id of this.#others()) again ? this.#mesh.expect(id) : this.#mesh.meet(id);
  }

  on_joined({ participant }) {
    this.people.set(participant.id, participant);
    if (participant.id !== this.self && this.mode === "p2p") this.#mesh?.expect(participant.id);
    this.render();
  }

  on_updated({ participant }) {
    if (!this.people.has(participant.id)) return this.on_joined({ participant });
    this.people.set(participant.id, participant);
    this.render();
  }

  on_left({ participant }) {
    const known = this.people.get(participant);
    this.people.delete(participant);
    this.#problems.delete(participant);
    this.#forwarded.delete(participant);
    this.#mesh?.drop(participant);
    if (known) announce(`${known.name || "Somebody"} left`);
    this.render();
  }

  on_signal({ from, data }) {
    if (from === "sfu") this.#server().signal(data);
    else if (this.mode === "p2p" || this.#mesh?.peers.has(from)) this.#mesh?.signal(from, data);
  }

  on_media({ mode }) {
    this.#setMode(mode, false);
    this.render();
  }

  on_ice({ ice_servers, restart, stun_only }) {
    this.#takeServers(ice_servers, stun_only);
    this.#mesh?.setServers(ice_servers, restart);
    this.#sfu?.setServers(ice_servers);
    this.render();
  }

  on_degraded(message) {
    this.#degraded = message;
    this.render();
  }

  on_mute({ by, kind }) {
    this.set(kind, false);
    const who = this.people.get(by)?.name || "A moderator";
    notice(kind === "audio" ? `${who} muted your microphone.` : `${who} switched your camera off.`);
  }

  on_data({ from, data }) {
    if (typeof data?.chat !== "string") return;
    this.#page.chat(this.people.get(from)?.name || "Somebody", data.chat.slice(0, 2000));
  }

  on_error({ error, message }) {
    if (error === "PEER_UNREACHABLE") return; // said by the banner; offers are repeated by themselves
    if (error === "RATE_LIMITED" || error === "FORBIDDEN") notice(message);
    else console.warn(`signalling: ${error}: ${message}`);
  }

  on_refused({ message }) {
    notice(message || "Joining is not possible now; trying again.", { key: "refused" });
  }

  // --- media

  #others() {
    return [...this.people.keys()].filter((id) => id !== this.self);
  }

  #takeServers(servers, stunOnly) {
    this.#servers = servers;
    this.#stunOnly = stunOnly ?? this.#degraded.rows.some((row) => row.row.startsWith("W2"));
  }

  // Direct media goes on until what comes through the server flows.
  #setMode(mode, loadedAgain) {
    this.mode = mode;
    if (mode !== "sfu") return this.#withoutServer();
    this.#mesh?.expectNobody();
    this.#server();
    if (loadedAgain) this.#sfu.resume();
  }

  // The service was restarted and begins anew: what went through the old one is gone.
  #withoutServer() {
    this.#sfu?.close();
    this.#sfu = null;
    this.#forwarded.clear();
  }

  #server() {
    if (this.#sfu) return this.#sfu;
    const hooks = {
      send: (data) => this.#signalling.send({ type: "signal", to: "sfu", data }),
      tracks: (tracks) => this.#arrived(tracks),
      changed: () => this.render(),
      blocked: (blocked) => (blocked ? notice(BLOCKED, { key: "blocked" }) : unnotice("blocked")),
      path: (state) => this.#signalling.send({ type: "path", peer: "sfu", state, relayed: false }),
      unsupported: (text) => notice(text, { key: "unsupported" }),
    };
    return (this.#sfu = new Sfu(this.#devices.local, { ...this.#devices.tracks }, this.#servers, hooks));
  }

  #arrived(tracks) {
    for (const id of this.#forwarded.keys()) if (!tracks.has(id)) this.#forwarded.delete(id);
    for (const [id, kinds] of tracks) {
      const known = this.#forwarded.get(id) || { stream: new MediaStream(), flows: false, told: false };
      this.#forwarded.set(id, known);
      const wanted = Object.values(kinds);
      for (const old of known.stream.getTracks()) if (!wanted.includes(old)) known.stream.removeTrack(old);
      for (const track of wanted) {
        known.stream.addTrack(track);
        track.onunmute = () => this.#flows(id);
        if (!track.muted) this.#flows(id);
      }
    }
    this.render();
  }

  // What somebody sends comes through the server: a first frame where there is to be a picture, which may be a while
  // after the first packet.
  async #flows(id) {
    const known = this.#forwarded.get(id);
    const sub = this.#sfu?.sub;
    if (!known || known.flows || !sub) return;
    const [video] = known.stream.getVideoTracks();
    const pictures = Boolean(this.people.get(id)?.video && video);
    const flows = pictures ? await decoded(sub, video) : known.stream.getTracks().some((track) => !track.muted);
    if (known !== this.#forwarded.get(id) || known.flows) return;
    if (flows) this.#switch(id, known);
    else if (pictures && !video.muted) this.#mesh?.later(() => this.#flows(id), FRAME);
  }

  #switch(id, known) {
    known.flows = true;
    this.#problems.delete(id);
    const peer = this.#mesh?.peers.get(id);
    peer?.forwarded();
    if (peer && !peer.connected) this.#mesh.drop(id);
    this.#handOver(id);
    this.#mesh?.later(() => this.#mesh.drop(id), HANDOVER);
    this.render();
  }

  #told(id) {
    const known = this.#forwarded.get(id) || { stream: new MediaStream(), flows: false, told: false };
    this.#forwarded.set(id, known);
    known.told = true;
    this.#handOver(id);
  }

  #handOver(id) {
    const { flows, told } = this.#forwarded.get(id);
    if (flows && told) this.#mesh?.drop(id);
  }

  async #path(peer, state) {
    if (state === "connected") this.#problems.delete(peer.id);
    else if (this.mode === "p2p") this.#problems.set(peer.id, "no direct connection yet …");
    this.render();
    const relayed = await this.#relayed(peer, state === "connected" ? 5 : 1);
    const tried = state === "failed" && hasRelay(peer.pc.getConfiguration().iceServers || []);
    this.#signalling.send({ type: "path", peer: peer.id, state, relayed: relayed || tried });
  }

  // The selected pair shows in the statistics a moment after the connection.
  async #relayed({ pc }, looks) {
    for (; looks > 0; looks--) {
      const { pair, relayed } = await look(pc).catch(() => ({}));
      if (pair) return relayed;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return false;
  }

  #links() {
    const links = [];
    for (const peer of this.#mesh?.peers.values() || []) {
      const direct = !this.#forwarded.get(peer.id)?.flows && this.connection === "connected";
      const expecting = direct && this.#sending(peer.id);
      links.push({ key: peer.name, pc: peer.pc, watched: peer.watched, expecting, dead: () => peer.rescue() });
    }
    const { sub, watched } = this.#sfu || {};
    if (sub && sub.connectionState !== "closed") {
      const expecting = [...this.#forwarded.keys()].some((id) => this.#sending(id));
      links.push({ key: sub, pc: sub, watched, expecting, forwarded: true, dead: () => this.#sfu.rescue() });
    }
    return links;
  }

  #sending(id) {
    const one = this.people.get(id);
    return Boolean(one && !one.away && (one.audio || one.video));
  }

  // --- what the user does

  async set(kind, on) {
    await this.#devices.set(kind, on);
    const track = this.#devices.tracks[kind];
    await Promise.all([this.#mesh?.replaceTrack(kind, track), this.#sfu?.replaceTrack(kind, track)]);
    if (on && this.#devices.problems[kind]) notice(this.#devices.problems[kind]);
    this.#tellMedia();
    this.render();
  }

  flip(kind) {
    return this.set(kind, !this.#devices.sends[kind]);
  }

  say(text) {
    return this.#signalling.send({ type: "data", data: { chat: text } });
  }

  moderate(id, action) {
    if (action === "kick") this.#signalling.send({ type: "kick", participant: id });
    else this.#signalling.send({ type: "mute", participant: id, kind: "audio" });
  }

  #tellMedia() {
    const sends = this.#devices.sends;
    const own = this.people.get(this.self);
    if (own) this.people.set(this.self, { ...own, ...sends });
    this.#signalling.send({ type: "media", ...sends });
    this.#page.sends(sends);
  }

  // --- the end

  #stop() {
    this.#mesh?.close();
    this.#sfu?.close();
    this.#mesh = this.#sfu = null;
    this.#forwarded.clear();
  }

  #end(reason, text) {
    this.#stop();
    this.#watch.close();
    this.#devices.close();
    this.people.clear();
    notice("");
    banner("");
    for (const id of ["status", "way"]) chip(id, "");
    this.#page.ended(reason, text);
  }

  // --- what is to be seen

  render() {
    const people = [...this.#others().map((id) => this.#seen(id)), this.#own()];
    this.#page.tiles.render(people);
    roster(people, this.#moderates ? (id, action) => this.moderate(id, action) : null);
    const { audio, video } = this.#devices.sends;
    toggle("mic", audio, "mic", ["Mute", "Unmute"]);
    toggle("cam", video, "cam", ["Camera off", "Camera on"]);
    chip("way", this.people.size < 2 ? "" : this.mode === "sfu" ? "via our server" : "direct");
    banner(this.#bannerText());
  }

  #bannerText() {
    const { rows, single_instance } = this.#degraded;
    const texts = rows.filter((row) => !row.row.startsWith("W2")).map((row) => row.text);
    if (single_instance) texts.splice(0, Infinity, SINGLE);
    if (this.#stunOnly) texts.push(STUN_ONLY);
    return [...new Set(texts)].join(" ");
  }

  #own() {
    const own = this.people.get(this.self) || { id: "self", name: "", quality: "" };
    const seen = { ...own, ...this.#devices.sends, own: true, name: own.name || "You", waiting: "" };
    return { ...seen, stream: this.#devices.local, marks: marks(seen) };
  }

  #seen(id) {
    const one = this.people.get(id);
    const peer = this.#mesh?.peers.get(id);
    const forwarded = this.#forwarded.get(id);
    const stream = forwarded?.flows || !peer ? forwarded?.stream : peer.stream;
    const live = forwarded?.flows ? this.#sfu?.connected : peer?.connected;
    const waiting = one.away ? "reconnecting …" : live ? "" : this.#problems.get(id) || "connecting …";
    const shown = { own: false, name: one.name || "Guest", stream: stream || null, waiting };
    return { ...one, ...shown, marks: marks(one, peer, forwarded) };
  }

  get state() {
    const peers = [...(this.#mesh?.peers.values() || [])];
    return {
      participant: this.self,
      participants: [...this.people.values()].map((one) => ({ ...one })),
      mode: this.mode,
      connection: this.connection,
      ice: Object.fromEntries(peers.map((peer) => [peer.id, peer.pc.connectionState])),
      relayed: Object.fromEntries(peers.map((peer) => [peer.id, Boolean(peer.watched.relayed)])),
      sfu: { pub: this.#sfu?.pub?.connectionState ?? null, sub: this.#sfu?.sub?.connectionState ?? null },
      through: Object.fromEntries(this.#others().map((id) => [id, this.#forwarded.get(id)?.flows ? "sfu" : "p2p"])),
      relayOffered: hasRelay(this.#servers),
      banner: this.#bannerText(),
    };
  }

  // Frames decoded so far, by participant, of the connections that are open.
  async frames() {
    const found = {};
    for (const peer of this.#mesh?.peers.values() || []) found[peer.id] = (await look(peer.pc)).frames;
    for (const [id, { stream }] of this.#forwarded) {
      const track = stream.getVideoTracks()[0];
      if (track && this.#sfu?.sub) found[id] = (found[id] || 0) + (await decoded(this.#sfu.sub, track));
    }
    return found;
  }
}

function marks(one, peer, forwarded) {
  const found = [];
  if (one.away) found.push("away");
  if (!one.audio) found.push("muted");
  if (!one.video) found.push("no camera");
  if (!forwarded?.flows && peer?.watched.relayed) found.push("relayed");
  return found;
}

function announce(text) {
  chip("status", text);
  setTimeout(() => byId("status").textContent === text && chip("status", ""), 4_000);
}
