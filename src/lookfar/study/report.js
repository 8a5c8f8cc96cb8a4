"use strict";

// ---- the table sorts by click: numbers from large to small first, what is not known last --------------------------
for (const table of document.querySelectorAll("#compare")) {
  const head = table.tHead.rows[0], body = table.tBodies[0];
  let column = 0;
  for (const th of head.cells) {
    const index = column, text = th.dataset.kind === "text";
    column += th.colSpan;
    th.querySelector("button").addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") === (text ? null : "descending");
      for (const other of head.cells) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[index].dataset.sort;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = text ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      body.append(...rows);
    });
  }
}

// ---- where it looks -------------------------------------------------------------------------------------------------
const source = document.getElementById("data");
if (source) explore(JSON.parse(source.textContent));

function explore(data) {
  const root = document.getElementById("explorer"), stage = document.getElementById("query");
  const readout = document.getElementById("readout"), thumbs = root.querySelector(".thumbs");
  const figures = [...root.querySelectorAll(".map")];
  const pictures = data.images.map((_, i) => document.getElementById("image-" + i));
  const bytes = data.blocks.map(block => block.images.map(image => decode(image.maps)));
  // the finest grid of queries decides where one can stand
  const finest = data.blocks.reduce((a, b) => (b.query.length > a.query.length ? b : a));
  const [rows, columns] = finest.grid;
  let image = 0, row = 0, column = 0;
  root.hidden = false;

  data.images.forEach((info, i) => {
    const button = document.createElement("button"), small = document.createElement("img");
    button.type = "button";
    small.src = pictures[i].src;
    small.alt = info.name;
    if (Math.max(...info.size) < 200) small.style.imageRendering = "pixelated";
    button.append(small);
    button.addEventListener("click", () => show(i));
    thumbs.append(button);
  });

  function show(i) {
    image = i;
    const [y, x] = data.images[i].start;
    move(y, x);
  }

  function move(y, x) {
    row = Math.min(Math.max(Math.floor(y * rows), 0), rows - 1);
    column = Math.min(Math.max(Math.floor(x * columns), 0), columns - 1);
    draw();
  }

  function draw() {
    const [y, x] = finest.query[row * columns + column], picture = pictures[image];
    const label = finest.images[image].label[row * columns + column];
    const of = label < data.classes.length ? data.classes[label] : "unlabelled";
    readout.textContent = `${data.images[image].name}: query in row ${row + 1} of ${rows}, column ${column + 1} of ${columns}, on “${of}”.`;
    [...thumbs.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === image)));
    const context = prepare(stage);
    context.drawImage(picture, 0, 0, stage.width, stage.height);
    ring(context, y, x);
    data.blocks.forEach((block, b) => {
      const at = nearest(block, y, x), own = block.images[image], figure = figures[b];
      const [now, all] = figure.querySelectorAll("canvas");
      heat(now, block, own, bytes[b][image], at + 1, picture);
      ring(now.getContext("2d"), y, x);
      heat(all, block, own, bytes[b][image], 0, picture);
      now.setAttribute("aria-label", `weights of ${block.name} for this query`);
      all.setAttribute("aria-label", `mean weights of ${block.name} over all queries`);
      const say = (key, text) => { figure.querySelector(`[data-of=${key}]`).textContent = text; };
      say("similarity", own.similarity === null ? "–" : own.similarity.toFixed(2));
      const share = own.share[at], chance = own.chance[at];
      say("share", share === null || chance === null ? "–" : `${percent(share)} here, ${percent(chance)} by chance`);
      const [low, high] = own.span[at + 1];
      say("peak", `${(Math.max(Math.abs(low), Math.abs(high)) / block.uniform).toFixed(1)} × uniform`);
    });
  }

  function prepare(canvas) {
    const [h, w] = data.images[image].size, ratio = window.devicePixelRatio || 1;
    canvas.style.aspectRatio = `${w} / ${h}`;
    canvas.width = Math.max(Math.round(canvas.clientWidth * ratio), 1);
    canvas.height = Math.max(Math.round(canvas.width * h / w), 1);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = Math.max(h, w) >= 200;
    return context;
  }

  function heat(canvas, block, own, stored, k, picture) {
    const context = prepare(canvas), { width, height } = canvas;
    context.drawImage(picture, 0, 0, width, height);
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    context.fillStyle = "rgba(0, 0, 0, 0.45)";
    context.fillRect(0, 0, width, height);
    const [h, w] = block.size, [low, high] = own.span[k], top = Math.max(Math.abs(low), Math.abs(high)) || 1;
    for (let i = 0; i < h * w; i++) {
      const value = (low + (high - low) * stored[k * h * w + i] / 255) / top;
      const x0 = Math.round((i % w) * width / w), x1 = Math.round((i % w + 1) * width / w);
      const y0 = Math.round(Math.floor(i / w) * height / h), y1 = Math.round((Math.floor(i / w) + 1) * height / h);
      context.fillStyle = colour(value);
      context.fillRect(x0, y0, x1 - x0, y1 - y0);
    }
  }

  function ring(context, y, x) {
    const { width, height } = context.canvas, r = Math.max(width / 36, 5);
    for (const [style, thick] of [["#000", r * 0.7], ["#fff", r * 0.32]]) {
      context.beginPath();
      context.arc(x * width, y * height, r, 0, 2 * Math.PI);
      context.strokeStyle = style;
      context.lineWidth = thick;
      context.stroke();
    }
  }

  stage.addEventListener("click", event => {
    const box = stage.getBoundingClientRect();
    move((event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width);
  });
  stage.addEventListener("keydown", event => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = Math.min(Math.max(row + step[0], 0), rows - 1);
    column = Math.min(Math.max(column + step[1], 0), columns - 1);
    draw();
  });
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", draw);
  Promise.all(pictures.map(p => p.decode().catch(() => {}))).then(() => show(0));
}

function nearest(block, y, x) {
  let best = 0, least = Infinity;
  block.query.forEach(([qy, qx], i) => {
    const distance = (qy - y) ** 2 + (qx - x) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

function decode(text) {
  return Uint8Array.from(atob(text), c => c.charCodeAt(0));
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

// dark to light through red for weights, blue for the negative weights that some blocks have
function colour(value) {
  const stops = [[20, 11, 52], [87, 16, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
  const v = Math.min(Math.abs(value), 1), at = v * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
  const mixed = value < 0 ? [40, 110 + 120 * v, 255] : stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i)));
  return `rgba(${mixed.join(",")},${(0.12 + 0.8 * Math.sqrt(v)).toFixed(3)})`;
}
