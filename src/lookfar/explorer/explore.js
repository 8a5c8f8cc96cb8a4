"use strict";

const stage = document.getElementById("query"), readout = document.getElementById("readout");
const message = document.getElementById("message"), maps = document.getElementById("maps");
const sample = document.getElementById("sample"), which = document.getElementById("which");
const picture = document.createElement("canvas");
let networks = [], laid = "", shown = null, said = null, means = new Map(), point = [0.5, 0.5], chosen = "", asked = 0;

// answers as JSON; what the server refuses is shown, and null
async function ask(route, given = {}) {
  document.body.classList.add("busy");
  try {
    const answer = await fetch(route, given), found = await answer.json();
    if (answer.ok) return found;
    message.textContent = found.error;
  } catch {
    message.textContent = "lookfar explore does not answer: is it still running?";
  } finally {
    document.body.classList.remove("busy");
  }
  return null;
}

async function open(route, given) {
  message.textContent = "";
  const found = await ask(route, given);
  if (!found) return;
  shown = found;
  means = new Map();
  picture.width = found.width;
  picture.height = found.height;
  const pixels = new Uint8ClampedArray(decode(found.pixels));
  picture.getContext("2d").putImageData(new ImageData(pixels, found.width, found.height), 0, 0);
  document.getElementById("explorer").hidden = false;
  await move(0.5, 0.5);
}

async function move(y, x) {
  point = [Math.min(Math.max(y, 0), 1), Math.min(Math.max(x, 0), 1)];
  const turn = ++asked, of = shown;
  draw();
  const at = `image=${of.image}&x=${point[1]}&y=${point[0]}`, found = await ask(`map?${at}`);
  if (!found || turn !== asked) return;  // a later click was answered
  message.textContent = "";
  said = found;
  // a block that is called several times answers as often, and some can say only now why they have no maps
  lay(found.map((network, n) => ({ name: networks[n].name, blocks: network.blocks })));
  offer([...new Set(found.flatMap(network => network.blocks).flatMap(block => block.names || []))].filter(Boolean));
  draw();
  if (means.size) return;
  // all queries together cost a pass over all of them: after the first answer, and once an image
  const all = await ask(`map?${at}&mean=1`);
  if (!all || of !== shown) return;
  all.forEach((network, n) => network.blocks.forEach((block, b) => means.set(`${n} ${b}`, block.mean)));
  draw();
}

function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  canvas.width = Math.max(Math.round(canvas.clientWidth * ratio), 1);
  canvas.height = Math.max(Math.round(canvas.width * picture.height / picture.width), 1);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = Math.max(picture.width, picture.height) >= 200;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return context;
}

function draw() {
  if (!shown) return;
  ring(prepare(stage), ...point);
  const [y, x] = point.map((place, axis) => Math.floor(place * (axis ? picture.width : picture.height)));
  const whole = shown.says.filter(Boolean).length ? ` Predicted: ${shown.says.join(", ")}.` : "";
  readout.textContent = `${shown.name}, pixel ${x}, ${y} of ${picture.width}×${picture.height}.${whole}`;
  if (!said) return;
  let figure = 0;
  const figures = maps.querySelectorAll(".map"), names = maps.querySelectorAll("h2 .pm");
  said.forEach((network, n) => {
    names[n].textContent = network.says ? `predicts ${network.says}` : "";
    network.blocks.forEach((block, b) => drawBlock(figures[figure++], block, means.get(`${n} ${b}`)));
  });
}

function drawBlock(figure, block, mean) {
  if (!block.maps) return;
  const here = one(block, block.maps), all = mean ? one(block, mean) : null, uniform = 1 / here.length;
  const top = Math.max(9 * uniform, ...here.map(Math.abs), ...(all || []).map(Math.abs));
  const [now, every] = figure.querySelectorAll("canvas"), context = prepare(now);
  cells(context, block.size, here, top);
  ring(context, ...block.query);
  now.setAttribute("aria-label", `weights of ${block.name} for this query`);
  figure.querySelector(".this").textContent = `this query${whichMap(block.names, block.names.indexOf(chosen))}`;
  figure.querySelector(".all").textContent = all ? "all queries together" : "all queries together: being computed …";
  const beside = prepare(every);
  if (all) cells(beside, block.size, all, top);
  every.setAttribute("aria-label", `weights of ${block.name} of all queries together`);
  figure.querySelector(".top").textContent = `${short(top / uniform)}×`;
  figure.querySelector(".even").style.left = `${100 * Math.sqrt(uniform / top)}%`;
  figure.querySelector(".scale").classList.toggle("signed", here.some(v => v < 0) || (all || []).some(v => v < 0));
}

// the weights of the chosen map, or of the mean over all where the block has none of that name
function one(block, of) {
  const index = block.names.indexOf(chosen);
  if (index >= 0) return of[index];
  return of[0].map((_, i) => of.reduce((sum, map) => sum + map[i], 0) / of.length);
}

// a button for each map that some block has
function offer(names) {
  if (which.dataset.offered === JSON.stringify(names)) return;
  which.dataset.offered = JSON.stringify(names);
  which.hidden = !names.length;
  which.replaceChildren();
  if (!names.includes(chosen)) chosen = "";
  for (const [value, text] of mapButtons(which, names)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => {
      chosen = value;
      for (const other of which.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
    which.append(button);
  }
}

function upload(file) {
  if (!file) return;
  sample.value = "";
  open(`image?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
}

// a figure for each block, where they are not there already
function lay(blocksOf) {
  const now = JSON.stringify(blocksOf.map(network => network.blocks.map(block => [block.name, block.reason])));
  if (now === laid) return;
  laid = now;
  maps.replaceChildren();
  for (const network of blocksOf) {
    const title = document.createElement("h2"), predicts = document.createElement("span");
    predicts.className = "pm";
    title.append(network.name, predicts);
    maps.append(title);
    for (const block of network.blocks) {
      const figure = document.getElementById("figure").content.firstElementChild.cloneNode(true);
      figure.querySelector("figcaption").textContent = block.reason ? `${block.name}: no maps, ${block.reason}` : block.name;
      if (block.reason) figure.querySelectorAll(".two, .scale").forEach(part => part.remove());
      maps.append(figure);
    }
  }
}

function build(start) {
  networks = start.networks;
  lay(networks);
  document.getElementById("offered").hidden = !start.samples.length;
  sample.append(new Option("choose …", ""), ...start.samples.map((name, k) => new Option(name, String(k))));
  if (!start.samples.length) { message.textContent = "Bring an image: choose a file, or drop one here."; return; }
  sample.value = "0";
  open("image?sample=0");
}

document.getElementById("file").addEventListener("change", event => upload(event.target.files[0]));
sample.addEventListener("change", () => { if (sample.value) open(`image?sample=${sample.value}`); });
stage.addEventListener("click", event => {
  const box = stage.getBoundingClientRect();
  move((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
});
stage.addEventListener("keydown", event => {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step || !said) return;
  event.preventDefault();
  // one position of the finest map
  const [h, w] = said.flatMap(network => network.blocks).filter(block => block.size)
    .map(block => block.size).reduce((a, b) => (a[0] * a[1] >= b[0] * b[1] ? a : b), [1, 1]);
  move(point[0] + step[0] / h, point[1] + step[1] / w);
});
document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  upload(event.dataTransfer.files[0]);
});
window.addEventListener("resize", draw);
ask("start").then(start => { if (start) build(start); });
