// What is to be seen: tiles, roster, banner, notices, panels. It shows what it is told and knows no protocol.
// Texts of others are set as text, never as HTML.

export const byId = (id) => document.getElementById(id);

const QUALITY = {
  excellent: "excellent connection",
  good: "good connection",
  poor: "poor connection",
  lost: "connection lost",
};
const GAP = 10; // px between tiles
const NARROW = matchMedia("(max-width: 52rem)");

export function show(view) {
  document.body.dataset.view = view;
}

export function chip(id, text, alert = false) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
  byId(id).classList.toggle("alert", alert);
}

export function banner(text) {
  byId("banner").textContent = text;
  byId("banner").hidden = !text;
}

let noticeTimer;

// One notice at a time; with an action it stays until it is used or dismissed. `key`: `unnotice` takes it away again.
export function notice(text, { key = "", action = "", run = null } = {}) {
  clearTimeout(noticeTimer);
  const button = byId("notice-action");
  byId("notice-text").textContent = text;
  byId("notice").dataset.key = key;
  byId("notice").hidden = !text;
  button.textContent = action;
  button.hidden = !action;
  button.onclick = () => (notice(""), run?.());
  if (text && !action && !key) noticeTimer = setTimeout(() => notice(""), 8_000);
}

export function unnotice(key) {
  if (byId("notice").dataset.key === key) notice("");
}

function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

function bars(element, quality) {
  element.dataset.quality = QUALITY[quality] ? quality : "";
  element.setAttribute("aria-label", QUALITY[quality] || "");
  element.title = QUALITY[quality] || "";
}

const hue = (id) => [...id].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);

// Fills a tile or the preview: a picture, or the name's first letter where there is none.
export function fill(tile, { name, id, stream, video }) {
  const screen = tile.querySelector("video");
  if (screen.srcObject !== stream) screen.srcObject = stream;
  tile.classList.toggle("dark", !video);
  const initial = tile.querySelector(".initial");
  initial.textContent = [...(name || "?")][0].toUpperCase();
  initial.style.setProperty("--hue", hue(id));
  return screen;
}

export class Tiles {
  #list = byId("tiles");
  #tiles = new Map();

  constructor() {
    new ResizeObserver(() => this.#columns()).observe(this.#list);
  }

  // `people`: [{id, name, own, stream, audio, video, quality, waiting}]; own last.
  render(people) {
    const wanted = new Set(people.map((one) => one.id));
    for (const [id, tile] of this.#tiles) if (!wanted.has(id)) (tile.remove(), this.#tiles.delete(id));
    for (const one of people) this.#render(one);
    const own = this.#tiles.get(people.at(-1).id);
    if (own.nextSibling) this.#list.append(own);
    this.#columns();
    byId("alone").hidden = people.length > 1;
  }

  #render(one) {
    let tile = this.#tiles.get(one.id);
    if (!tile) {
      tile = fromTemplate("tile-template");
      tile.dataset.participant = one.id;
      tile.classList.toggle("own", one.own);
      tile.querySelector("video").muted = one.own;
      this.#tiles.set(one.id, tile);
      this.#list.append(tile);
    }
    const screen = fill(tile, one);
    const plays = !one.own && one.stream?.getTracks().length;
    if (plays && screen.paused) screen.play().catch((error) => this.#blocked(error));
    tile.classList.toggle("silent", !one.audio);
    tile.querySelector(".name").textContent = one.own ? `${one.name} (you)` : one.name;
    bars(tile.querySelector(".bars"), one.quality);
    const waiting = tile.querySelector(".waiting");
    waiting.textContent = one.waiting;
    waiting.hidden = !one.waiting;
  }

  #blocked(error) {
    if (error.name !== "NotAllowedError") return; // a newer stream took its place
    const play = () => this.#list.querySelectorAll("video").forEach((screen) => screen.play());
    notice("The browser waits for a click before it plays sound.", { action: "Play", run: play });
  }

  // As many columns as make the pictures largest; each is between square and 16 to 9.
  #columns() {
    const { clientWidth, clientHeight } = this.#list;
    const count = this.#tiles.size;
    let best = { width: 0, height: 0 };
    for (let columns = 1; columns <= count; columns++) {
      const rows = Math.ceil(count / columns);
      const most = { width: clientWidth / columns - GAP, height: clientHeight / rows - GAP };
      const width = Math.min(most.width, (most.height * 16) / 9);
      const height = Math.min(most.height, width);
      if (width * height > best.width * best.height) best = { width, height };
    }
    this.#list.style.setProperty("--width", `${Math.floor(best.width)}px`);
    this.#list.style.setProperty("--height", `${Math.floor(best.height)}px`);
  }
}

// `people` as for tiles, with `marks`; `moderate(id, action)` or null where that is not allowed.
export function roster(people, moderate) {
  byId("count").textContent = people.length;
  const list = byId("roster");
  const known = new Map([...list.children].map((item) => [item.dataset.participant, item]));
  const items = people.map((one) => known.get(one.id) || person(one.id, moderate));
  if (items.length !== list.children.length || items.some((item, index) => list.children[index] !== item)) {
    list.replaceChildren(...items);
  }
  people.forEach((one, index) => describe(items[index], one, Boolean(moderate)));
}

function person(id, moderate) {
  const item = fromTemplate("person-template");
  item.dataset.participant = id;
  item.addEventListener("click", (event) => event.target.dataset.action && moderate(id, event.target.dataset.action));
  return item;
}

function describe(item, one, moderates) {
  item.querySelector(".name").textContent = one.own ? `${one.name} (you)` : one.name;
  item.querySelector(".marks").textContent = one.marks.join(" · ");
  bars(item.querySelector(".bars"), one.quality);
  item.querySelector(".moderate").hidden = !moderates || one.own;
  for (const button of item.querySelectorAll("button")) {
    button.setAttribute("aria-label", `${button.textContent} ${one.name}`);
  }
}

// A button of the bar that switches a device.
export function toggle(id, on, icon, [textOn, textOff]) {
  const button = byId(id);
  button.setAttribute("aria-pressed", String(!on));
  button.querySelector("use").setAttribute("href", `#icon-${icon}${on ? "" : "-off"}`);
  button.querySelector("span").textContent = on ? textOn : textOff;
}

// Tabs as the ARIA authoring practices have them: arrows move, the panel follows.
export class Panels {
  #tabs = [...document.querySelectorAll("[role=tab]")];
  #opened;

  constructor(opened) {
    this.#opened = opened;
    for (const tab of this.#tabs) {
      tab.addEventListener("click", () => this.select(tab));
      tab.addEventListener("keydown", (event) => this.#key(event, tab));
    }
    byId("side").addEventListener("click", () => this.open(!this.isOpen));
    document.addEventListener("keydown", (event) => event.key === "Escape" && NARROW.matches && this.open(false));
    this.open(!NARROW.matches);
  }

  get isOpen() {
    return !document.body.classList.contains("wide") && !byId("panel").hidden;
  }

  open(open) {
    document.body.classList.toggle("wide", !open);
    byId("panel").hidden = !open;
    byId("side").setAttribute("aria-expanded", String(open));
    if (open) this.#opened(this.current);
  }

  get current() {
    return this.#tabs.find((tab) => tab.getAttribute("aria-selected") === "true").getAttribute("aria-controls");
  }

  select(chosen) {
    for (const tab of this.#tabs) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !selected;
    }
    this.#opened(this.current);
  }

  #key(event, tab) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = this.#tabs[(this.#tabs.indexOf(tab) + step + this.#tabs.length) % this.#tabs.length];
    this.select(next);
    next.focus();
  }
}
