"use strict";

// ---- drawing of maps over a picture: the report and the page of `lookfar explore` ------------------------------------

// the picture that is there goes grey and dark, and each cell gets the colour of its weight
function cells(context, [h, w], map, top) {
  const { width, height } = context.canvas;
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "rgba(0, 0, 0, 0.45)";
  context.fillRect(0, 0, width, height);
  for (let i = 0; i < h * w; i++) {
    const x0 = Math.round((i % w) * width / w), x1 = Math.round((i % w + 1) * width / w);
    const y0 = Math.round(Math.floor(i / w) * height / h), y1 = Math.round((Math.floor(i / w) + 1) * height / h);
    context.fillStyle = colour(Math.sign(map[i]) * Math.sqrt(Math.abs(map[i]) / top));  // so that faint weights are seen beside large ones
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

// the buttons of a group that chooses among the maps of a query, values and texts: the mean of all comes first
function mapButtons(group, names) {
  const heads = names.every(name => /^head \d+$/.test(name)), label = document.createElement("span");
  label.textContent = heads ? "head" : "map";
  group.setAttribute("aria-label", heads ? "Head" : "Map");
  group.prepend(label);
  return names.length ? [["", "mean"], ...names.map(name => [name, heads ? name.slice(5) : name])] : [];
}

// what is shown of a block's maps, behind "this query": nothing where it has one
function whichMap(names, index) {
  if (names.length < 2) return "";
  return index < 0 ? `, mean of ${names.length} maps` : `, ${names[index]}`;
}

function decode(text) {
  return Uint8Array.from(atob(text), c => c.charCodeAt(0));
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

function short(value) {
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}

// dark to light through red for weights, blue for the negative weights that some blocks have
function colour(value) {
  const stops = [[20, 11, 52], [87, 16, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
  const v = Math.min(Math.abs(value), 1), at = v * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
  const mixed = value < 0 ? [40, 110 + 120 * v, 255] : stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i)));
  return `rgba(${mixed.join(",")},${(0.1 + 0.82 * v).toFixed(3)})`;
}
