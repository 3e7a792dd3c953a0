// What getStats says: whether media still flows (looked at often, of connections that matter), and the report of the
// connection's quality for the server. https://www.w3.org/TR/webrtc-stats/

const LOOK = 300; // ms
const REPORT = 2_000; // ms
const DEAD = 1_500; // ms without a byte; measured against 7 s to `disconnected` and 17 s to `failed`
const DEAD_UNCONFIRMED = 800; // ms when the candidate pair does not answer either
const PATIENCE = 4_000; // ms for a rescue to work

// The part of a report that tells how a connection does.
export async function look(pc) {
  const found = { bytes: 0, received: 0, lost: 0, jitter: 0, fps: null, frames: 0, pair: null, relayed: false };
  const stats = await pc.getStats();
  for (const one of stats.values()) {
    if (one.type === "inbound-rtp") add(found, one);
    else if (one.selectedCandidatePairId) found.pair = stats.get(one.selectedCandidatePairId);
  }
  if (found.pair) {
    const ends = [stats.get(found.pair.localCandidateId), stats.get(found.pair.remoteCandidateId)];
    found.relayed = ends.some((end) => end?.candidateType === "relay");
  }
  return found;
}

function add(found, one) {
  found.bytes += one.bytesReceived || 0;
  found.received += one.packetsReceived || 0;
  found.lost += one.packetsLost || 0;
  found.jitter = Math.max(found.jitter, one.jitter || 0);
  if (one.kind !== "video") return;
  found.frames += one.framesDecoded || 0;
  if (one.framesPerSecond !== undefined) found.fps = Math.min(found.fps ?? Infinity, one.framesPerSecond);
}

// Frames of one track decoded so far.
export async function decoded(pc, track) {
  let frames = 0;
  for (const one of (await pc.getStats()).values()) {
    if (one.type === "inbound-rtp" && one.trackIdentifier === track.id) frames += one.framesDecoded || 0;
  }
  return frames;
}

// `links`: () => [{key, pc, watched, expecting, forwarded, dead()}], the connections that there are; `watched` is an
// object that stays with the connection: quiet (ms without a byte), relayed. What is `forwarded` may stand still
// because of its sender; then the connection itself is well.
export class Watch {
  #links;
  #report;
  #looks;
  #reports;
  #before = new Map();

  constructor(links, report) {
    this.#links = links;
    this.#report = report;
    this.#looks = setInterval(() => this.#each((link) => this.#look(link)), LOOK);
    this.#reports = setInterval(() => this.#sum(), REPORT);
  }

  close() {
    clearInterval(this.#looks);
    clearInterval(this.#reports);
  }

  #each(action) {
    return Promise.all(this.#links().map((link) => action(link).catch(() => {}))); // one that was closed meanwhile
  }

  async #look(link) {
    const found = await look(link.pc);
    const now = performance.now();
    const { watched } = link;
    if (found.bytes > (watched.bytes ?? 0)) Object.assign(watched, { bytes: found.bytes, grown: now });
    watched.quiet = watched.grown === undefined ? undefined : now - watched.grown;
    watched.relayed = found.relayed;
    watched.last = found;
    if (!link.expecting) watched.grown = watched.bytes === undefined ? undefined : now;
    else if (this.#dead(link, found, now)) {
      watched.rescued = now;
      link.dead();
    }
  }

  #dead({ watched, forwarded }, found, now) {
    if (watched.quiet === undefined || now - (watched.rescued ?? -Infinity) < PATIENCE) return false;
    if (found.pair?.state !== "succeeded") return watched.quiet > DEAD_UNCONFIRMED;
    return !forwarded && watched.quiet > DEAD;
  }

  // Over the time since the last report; nothing when there is nobody to hear.
  #sum() {
    const now = performance.now();
    const seen = new Map();
    const all = this.#links().filter((link) => link.watched.last && link.expecting);
    const changes = all.map((link) => {
      seen.set(link.key, { ...link.watched.last, at: now });
      return change(this.#before.get(link.key), seen.get(link.key));
    });
    this.#before = seen;
    const known = changes.filter(Boolean);
    if (known.length) this.#report(together(known));
  }
}

function change(before, after) {
  if (!before || after.bytes < before.bytes) return null;
  return {
    received: after.received - before.received,
    lost: Math.max(0, after.lost - before.lost),
    kbps: ((after.bytes - before.bytes) * 8) / (after.at - before.at),
    rtt: after.pair?.currentRoundTripTime,
    jitter: after.jitter,
    fps: after.fps,
    relayed: after.relayed,
  };
}

const sum = (values) => values.reduce((all, one) => all + one, 0);
const round = (value) => Math.round(value * 100) / 100;

function together(changes) {
  const lost = sum(changes.map((one) => one.lost));
  const packets = lost + sum(changes.map((one) => one.received));
  const times = changes.map((one) => one.rtt).filter((rtt) => rtt !== undefined);
  const rates = changes.map((one) => one.fps).filter((fps) => fps !== null);
  return {
    rtt_ms: round(times.length ? (sum(times) / times.length) * 1000 : 0),
    loss: packets ? Math.round((lost / packets) * 10_000) / 10_000 : 0,
    jitter_ms: round(Math.max(...changes.map((one) => one.jitter)) * 1000),
    bitrate_kbps: round(sum(changes.map((one) => one.kbps))),
    relayed: changes.some((one) => one.relayed),
    ...(rates.length ? { fps: Math.min(...rates) } : {}),
  };
}
