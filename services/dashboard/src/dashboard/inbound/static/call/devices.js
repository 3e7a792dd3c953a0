// Camera and microphone: opened as far as the browser lets us, switched off and on again, and the reasons when not.

const WANTED = {
  audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  video: { width: { ideal: 640 }, height: { ideal: 360 }, frameRate: { ideal: 24 } },
};
const NAMES = { audio: "microphone", video: "camera" };
const REASONS = {
  NotAllowedError: (what) =>
    `The browser was not allowed to use the ${what}. Allow it beside the address, then switch it on here.`,
  NotFoundError: (what) => `No ${what} was found.`,
  NotReadableError: (what) => `The ${what} is in use by another program.`,
};

function reason(error, what) {
  return REASONS[error.name]?.(what) || `The ${what} cannot be used: ${error.message}`;
}

export class Devices {
  constructor() {
    this.local = new MediaStream();
    this.tracks = { audio: null, video: null };
    this.problems = {}; // by kind
    this.ended = () => {}; // told of a kind whose device was unplugged
  }

  // What is sent now.
  get sends() {
    return { audio: Boolean(this.tracks.audio?.enabled), video: Boolean(this.tracks.video) };
  }

  async open(kinds) {
    const wanted = kinds.filter((kind) => !this.tracks[kind]);
    if (!wanted.length) return;
    if (!navigator.mediaDevices) {
      for (const kind of wanted) this.problems[kind] = "Camera and microphone need a page loaded over https.";
      return;
    }
    try {
      const asked = Object.fromEntries(wanted.map((kind) => [kind, WANTED[kind]]));
      this.#take(await navigator.mediaDevices.getUserMedia(asked));
    } catch (error) {
      if (wanted.length > 1) for (const kind of wanted) await this.open([kind]); // perhaps one of them is to be had
      else this.problems[wanted[0]] = reason(error, NAMES[wanted[0]]);
    }
  }

  #take(stream) {
    for (const track of stream.getTracks()) {
      this.local.addTrack(track);
      this.tracks[track.kind] = track;
      delete this.problems[track.kind];
      track.onended = () => (this.#drop(track), this.ended(track.kind));
    }
  }

  #drop(track) {
    track.onended = null;
    track.stop();
    this.local.removeTrack(track);
    if (this.tracks[track.kind] === track) this.tracks[track.kind] = null;
  }

  // Silence is sent while the microphone is off; the camera is let go, so that its light goes out.
  async set(kind, on) {
    const track = this.tracks[kind];
    if (kind === "audio" && track) track.enabled = on;
    else if (on) await this.open([kind]);
    else if (track) this.#drop(track);
  }

  close() {
    for (const track of this.local.getTracks()) this.#drop(track);
  }
}
