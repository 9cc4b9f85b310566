import { canEnter, Theatre } from "/static/immersive.js";
import { Plot } from "/static/plots.js";
import { follow } from "/static/stream.js";

const $ = (id) => document.getElementById(id);
const SILENCE = 3, LEAST_SILENCE = 5000; // periods, milliseconds without a frame after which it is called stale
const NAMES = ["raw", "generated", "overlay"], MADE = "generated colour";
const urls = {};
let layer = "generated", newest = null, session = null, arrived = 0, connected = false, theatre = null;
const lossPlot = new Plot($("loss-plot"), 0.25), energyPlot = new Plot($("energy-plot"), 1e-3);

// --- pictures

function show(name, blob) {
  const old = urls[name];
  urls[name] = URL.createObjectURL(blob);
  $(name).src = urls[name];
  if (old) URL.revokeObjectURL(old);
}

function showWipe() {
  if (!newest) return;
  $("wipe-left").src = urls.raw;
  $("wipe-right").src = urls[layer];
  $("provenance").textContent = newest.provenance[layer];
}

function forget() {
  for (const name of NAMES) {
    $(name).removeAttribute("src");
    if (urls[name]) URL.revokeObjectURL(urls[name]);
    delete urls[name];
  }
  $("wipe").setAttribute("data-empty", "");
  for (const id of ["gauges", "counts", "compared", "sentence", "cell", "provenance"]) $(id).replaceChildren();
  $("lost").textContent = $("energy").textContent = "–";
  $("node").textContent = "waiting for a node";
  newest = null;
  if (theatre) theatre.clear();
}

function choose(button) {
  layer = button.dataset.layer;
  for (const other of document.querySelectorAll("[data-layer]"))
    other.setAttribute("aria-pressed", String(other === button));
  $("wipe-right").alt = layer === "overlay" ? "Generated picture with readings and sound" : "Generated picture";
  showWipe();
  if (theatre && urls[layer]) theatre.show(urls[layer], MADE);
}

// --- numbers

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const millijoules = (joules) => `${(1000 * joules).toFixed(joules < 0.01 ? 2 : 1)} mJ`;
const kilobytes = (bytes) => `${(bytes / 1000).toFixed(bytes < 1e5 ? 1 : 0)} kB`;

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);
  return made;
}

function track(share) {
  const filled = element("i");
  filled.style.setProperty("--share", `${100 * share}%`);
  return element("div", "track", filled);
}

function gauge({ label, unit, value, share, word }) {
  const digits = unit === "°C" ? 1 : 0;
  const text = value === null ? "unknown" : `${value.toFixed(digits)} ${unit}`;
  const name = element("div", "", label, element("span", "", word ? `  ${word}` : ""));
  return element("div", "gauge", name, element("div", "", text), track(share ?? 0));
}

function showCost({ nbytes, energy, cell_days, cameras }) {
  $("energy").textContent = energy ? millijoules(energy.total) : "by wire";
  $("cell").textContent = cell_days
    ? `A coin cell lasts about ${cell_days.toFixed(0)} days at a frame every ${energy.period.toFixed(1)} s. Bytes of the node are those received.` : "";
  const rows = [{ name: "this node", nbytes, total: energy?.total ?? 0 }, ...cameras];
  const most = Math.max(...rows.map((row) => row.total));
  $("compared").replaceChildren(...rows.map((row, i) => element("div", i ? "compared other" : "compared",
    element("span", "", row.name), track(row.total / most),
    element("span", "", `${row.total ? millijoules(row.total) : "–"}, ${kilobytes(row.nbytes)}`))));
  if (energy) energyPlot.add(energy.total);
}

function showLoss({ share }, counts) {
  $("lost").textContent = percent(share);
  lossPlot.add(share);
  const shown = { frames: counts.frames, packets: counts.packets, missing: counts.holes, damaged: counts.damaged };
  $("counts").replaceChildren(...Object.entries(shown).map(([name, count]) =>
    element("div", "", element("dt", "", name), element("dd", "", count.toLocaleString("en")))));
}

// --- the stream

function shown(known, pictures) {
  if (known.session !== session) {
    lossPlot.clear();
    energyPlot.clear();
    session = known.session;
  }
  newest = known;
  arrived = performance.now();
  for (const name of NAMES) show(name, pictures[name]);
  $("wipe").style.aspectRatio = `${known.size[0]} / ${known.size[1]}`;
  $("wipe").removeAttribute("data-empty");
  showWipe();
  $("node").textContent = `node ${known.node}, frame ${known.number}`;
  $("gauges").replaceChildren(...known.gauges.map(gauge));
  $("sentence").textContent = known.sentence;
  showLoss(known.lost, known.statistics);
  showCost(known.cost);
  showRecording(known.recording);
  if (theatre) theatre.show(urls[layer], MADE);
  showStatus();
}

function changed(open) {
  connected = open;
  $("record").disabled = !open;
  if (!open) {
    forget();
    showRecording({ on: false, frames: 0 });
  }
  showStatus();
}

function showStatus() {
  const age = performance.now() - arrived;
  const patience = Math.max(LEAST_SILENCE, 1000 * SILENCE * (newest?.cost.energy?.period ?? 0));
  const stale = newest !== null && age > patience;
  const [state, text] = !connected ? ["lost", "connection lost, trying again"]
    : !newest ? ["waiting", "waiting for a frame"]
    : stale ? ["lost", `no frame for ${Math.round(age / 1000)} s`] : ["live", "live"];
  document.body.toggleAttribute("data-stale", stale);
  if (theatre) theatre.fade(stale);
  $("status").dataset.state = state;
  if ($("status").textContent !== text) $("status").textContent = text;
}

// --- controls

function showRecording({ on, frames, kind = "" }) {
  $("record").setAttribute("aria-pressed", String(on));
  $("record").querySelector("span").textContent = on ? `Stop (${frames})` : "Record";
  $("download").hidden = !frames;
  $("download").textContent = `Save ${kind.toUpperCase()}`;
}

async function record() {
  const on = $("record").getAttribute("aria-pressed") !== "true";
  const answer = await fetch("/recording", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ on }),
  });
  if (answer.ok) showRecording(await answer.json());
}

async function enter() {
  theatre = new Theatre(() => { theatre = null; });
  try {
    await theatre.enter();
    if (urls[layer]) theatre.show(urls[layer], MADE);
  } catch {
    theatre = null;
    $("immersive").textContent = "Headset refused";
  }
}

for (const button of document.querySelectorAll("[data-layer]")) button.onclick = () => choose(button);
$("split").oninput = ({ target }) => {
  $("wipe").style.setProperty("--split", `${target.value}%`);
  target.setAttribute("aria-valuetext", `${target.value} percent as received`);
};
$("record").onclick = record;
$("immersive").onclick = enter;
canEnter().then((able) => {
  $("immersive").disabled = !able;
  if (!able) $("immersive").title = "This browser has no headset; the page shows the same pictures flat.";
});
setInterval(showStatus, 500);
follow(shown, changed);
