// The page of a call, `/call/ROOM`: logging in, the choice of devices, the call, its end. With `?relay` in the address
// direct media goes through TURN while there is one.

import { api } from "./api.js";
import { Call } from "./call.js";
import { AgentChat, RoomChat } from "./chat.js";
import { Devices } from "./devices.js";
import { tabMemory } from "./signalling.js";
import { byId, fill, notice, Panels, show, Tiles } from "./view.js";

const KINDS = ["audio", "video"];
const ENDINGS = {
  left: "You left the call",
  gone: "This call is not there",
  full: "The room is full",
  kicked: "You were removed",
  replaced: "Joined elsewhere",
};
const room = decodeURIComponent(location.pathname.split("/").filter(Boolean).at(-1));
const address = new URLSearchParams(location.search);

// What was chosen is kept for this tab, so that who was muted is so after a reload.
const CHOICE = "auralink.call.choice";
const kept = () => JSON.parse(sessionStorage.getItem(CHOICE) || "{}");
const keep = (choice) => sessionStorage.setItem(CHOICE, JSON.stringify({ ...kept(), ...choice }));

let call = null;
let devices = null;
const panels = new Panels((panel) => {
  if (panel === "chat") byId("unread").hidden = true;
  if (panel === "agent") agent.refresh();
});
const tiles = new Tiles();
const chat = new RoomChat(byId("chat-form"), byId("chat-log"), (text) => Boolean(call?.say(text)));
const agent = new AgentChat(byId("agent-form"), byId("agent-choice"), byId("agent-log"));

const page = {
  tiles,
  sends: keep,
  chat(name, text) {
    chat.received(name, text);
    byId("unread").hidden = panels.isOpen && panels.current === "chat";
  },
  ended: (reason, text) => (reason === "login" ? begin() : ended(reason, text)),
};

function ended(reason, text) {
  byId("ended-title").textContent = ENDINGS[reason] || "The call has ended";
  byId("ended-text").textContent = text;
  byId("rejoin").hidden = reason === "gone" || reason === "kicked";
  show("ended");
  byId("ended-title").focus();
}

async function begin() {
  show("loading");
  try {
    await lobby((await account()).display_name);
  } catch (error) {
    if (error.status !== 401) throw error;
    show("login");
  }
}

// Who cannot be asked for now is called something all the same, and joins when the rest is there.
function account() {
  return api.me().catch((error) => {
    if (error.status === 401) throw error;
    return { display_name: "" };
  });
}

async function lobby(name) {
  const fields = byId("lobby").elements;
  const choice = { name, audio: true, video: true, ...kept() };
  fields.name.value ||= choice.name;
  for (const kind of KINDS) fields[kind].checked = choice[kind];
  devices = new Devices();
  if (tabMemory(room).read()) return join();
  show("lobby");
  await prepare();
}

// Opens what is wanted, both at once so that the browser asks once.
async function prepare() {
  const fields = byId("lobby").elements;
  await devices.open(KINDS.filter((kind) => fields[kind].checked));
  for (const kind of KINDS) if (devices.tracks[kind]) await devices.set(kind, fields[kind].checked);
  const problems = KINDS.map((kind) => (fields[kind].checked && devices.problems[kind]) || "");
  byId("device-problem").textContent = problems.join(" ").trim();
  const { local: stream, tracks } = devices;
  fill(byId("preview"), { name: fields.name.value, id: "self", stream, video: Boolean(tracks.video) });
}

async function join() {
  await prepare();
  const problems = byId("device-problem").textContent;
  const name = byId("lobby").elements.name.value.trim();
  keep({ name });
  call = new Call(room, devices, name, address.has("relay"), page);
  call.start();
  const again = () => KINDS.filter((kind) => devices.problems[kind]).forEach((kind) => call.set(kind, true));
  if (problems) notice(problems, { action: "Try again", run: again });
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { email, password } = event.target.elements;
  byId("login-problem").textContent = "";
  try {
    const { user } = await api.login(email.value, password.value);
    password.value = "";
    await lobby(user.display_name);
  } catch (error) {
    byId("login-problem").textContent = error.message;
  }
});
byId("lobby").addEventListener("submit", (event) => (event.preventDefault(), join()));
byId("lobby").addEventListener("change", (event) => event.target.type === "checkbox" && prepare());
byId("rejoin").addEventListener("click", begin);
byId("notice-close").addEventListener("click", () => notice(""));
byId("mic").addEventListener("click", () => call?.flip("audio"));
byId("cam").addEventListener("click", () => call?.flip("video"));
byId("leave").addEventListener("click", () => call?.leave());

// For tests, and for whoever looks: nothing here changes anything.
window.auralinkCall = Object.freeze({
  get state() {
    return call?.state ?? null;
  },
  frames: async () => (call ? call.frames() : {}),
});

begin();
