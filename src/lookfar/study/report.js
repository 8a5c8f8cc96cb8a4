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

// ---- what is folded on the screen is printed, but for further pictures ---------------------------------------------
for (const details of document.querySelectorAll("details.wide")) details.open = window.innerWidth > 640;
const folded = [...document.querySelectorAll("details.print:not([open])")];
window.addEventListener("beforeprint", () => folded.forEach(d => { d.open = true; }));
window.addEventListener("afterprint", () => folded.forEach(d => { d.open = false; }));

// ---- where it looks -------------------------------------------------------------------------------------------------
const source = document.getElementById("data");
if (source) explore(JSON.parse(source.textContent));

function explore(data) {
  const root = document.getElementById("explorer"), stage = document.getElementById("query");
  const readout = document.getElementById("readout"), thumbs = root.querySelector(".thumbs");
  const figures = [...root.querySelectorAll(".map")];
  const pictures = data.images.map((_, i) => document.getElementById("image-" + i));
  const decoded = new Map();
  const truth = data.images.map(info => data.labels && decode(info.truth));  // one label a query; else words
  const asks = data.images.map(info => info.asks && decode(info.asks));
  const [rows, columns] = data.grid;
  let seed = data.seed, map = "", image = 0, row = 0, column = 0;
  root.hidden = false;

  data.images.forEach((info, i) => {
    const button = document.createElement("button"), small = document.createElement("img");
    button.type = "button";
    small.src = pictures[i].src;
    small.alt = info.name;
    if (Math.max(...info.size) < 200) small.style.imageRendering = "pixelated";
    button.append(small);
    button.addEventListener("click", () => { image = i; move(...info.start); });
    thumbs.append(button);
  });
  choice("seeds", data.seeds.map(s => [s, String(s)]), () => seed, s => { seed = s; });
  const names = [...new Set(data.blocks.flatMap(block => block.maps))].filter(Boolean);
  choice("maps", mapButtons(root.querySelector("[data-choice=maps]"), names), () => map, name => { map = name; });

  // a row of buttons, of which one is pressed; nothing where there is nothing to choose
  function choice(name, options, current, set) {
    const group = root.querySelector(`[data-choice=${name}]`);
    group.hidden = options.length < 2;
    for (const [value, text] of options) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.value = value;
      button.addEventListener("click", () => { set(value); draw(); });
      group.append(button);
    }
    group.update = () => { for (const b of group.querySelectorAll("button")) b.setAttribute("aria-pressed", String(b.value === String(current()))); };
  }

  function move(y, x) {
    row = Math.min(Math.max(Math.floor(y * rows), 0), rows - 1);
    column = Math.min(Math.max(Math.floor(x * columns), 0), columns - 1);
    draw();
  }

  function named(label) {
    return label < data.classes.length ? data.classes[label] : "unlabelled";
  }

  function draw() {
    const at = row * columns + column, [y, x] = data.query[at], label = data.labels && truth[image][at];
    const question = asks[image] ? asks[image][at] : 0, boxes = question ? data.images[image].answers[question] : [];
    readout.textContent = `${data.images[image].name}, row ${row + 1} of ${rows}, column ${column + 1} of ${columns}. Truth: `;
    const strong = document.createElement("strong");
    strong.textContent = data.labels ? named(label) : data.images[image].truth || "–";
    readout.append(strong, ".");
    for (const line of root.querySelectorAll("[data-candidate]")) {
      const of = data.candidates[line.dataset.candidate].predicted[seed], said = line.querySelector(".says");
      if (!of) { said.textContent = "no trial"; continue; }
      const got = data.labels ? decode(of[image])[at] : of[image], right = got === (data.labels ? label : data.images[image].truth);
      const known = data.labels ? label < data.classes.length : data.exact;
      said.textContent = (data.labels ? named(got) : got || "–") + (known ? (right ? " ✓" : " ✗") : "");
      said.title = known ? (right ? "right" : "wrong") : "";
      said.classList.toggle("bad", known && !right);
    }
    for (const group of root.querySelectorAll("[data-choice]")) group.update();
    [...thumbs.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === image)));
    const context = prepare(stage);
    context.drawImage(pictures[image], 0, 0, stage.width, stage.height);
    frame(context, boxes);
    ring(context, y, x);
    data.blocks.forEach((block, b) => drawBlock(block, figures[b], y, x, boxes));
  }

  function drawBlock(block, figure, y, x, boxes) {
    const own = block.of[seed] && block.of[seed][image], [now, all] = figure.querySelectorAll("canvas");
    const say = (key, text) => {
      const dd = figure.querySelector(`[data-of=${key}]`);
      if (dd) dd.textContent = text;
    };
    figure.classList.toggle("none", !own);
    if (!own) return;
    const at = nearest(block, y, x), chosen = block.maps.indexOf(map);
    const here = weights(block, own, chosen, at + 1), mean = weights(block, own, chosen, 0);
    const similarity = average(own.similarity, chosen);
    figure.querySelector(".this").textContent = `this query${whichMap(block.maps, chosen)}`;
    // one map for all queries needs no second panel
    figure.querySelector(".two").classList.toggle("one", similarity !== null && similarity >= 0.999);
    const top = Math.max(9 * block.uniform, ...here.map(Math.abs), ...mean.map(Math.abs));
    for (const [canvas, map, which] of [[now, here, "for this query"], [all, mean, "of all queries together"]]) {
      if (!canvas.clientWidth) continue;
      heat(canvas, block, map, top);
      frame(canvas.getContext("2d"), boxes);
      if (canvas === now) ring(canvas.getContext("2d"), y, x);
      canvas.setAttribute("aria-label", `weights of ${block.name} ${which}`);
    }
    figure.querySelector(".top").textContent = `${short(top / block.uniform)}×`;
    const even = figure.querySelector(".even");
    even.style.left = `${100 * Math.sqrt(block.uniform / top)}%`;
    figure.querySelector(".scale").classList.toggle("signed", here.some(v => v < 0) || mean.some(v => v < 0));
    say("similarity", similarity === null ? "–" : similarity.toFixed(2));
    const by = (share, chance) => (share === null || chance === null ? "–" : `${percent(share)}, by chance ${percent(chance)}`);
    if (own.found) say("found", by(average(own.found.map(f => f[at]), chosen), own.found_chance[at]));
    else if (own.share) say("share", by(average(own.share.map(f => f[at]), chosen), own.chance[at]));
  }

  // of one map, or of the mean of all where chosen is -1
  function average(values, chosen) {
    const some = chosen < 0 ? values : [values[Math.min(chosen, values.length - 1)]];
    return some.some(v => v === null) ? null : some.reduce((a, b) => a + b, 0) / some.length;
  }

  function weights(block, own, chosen, k) {
    if (!decoded.has(own)) decoded.set(own, decode(own.maps));
    const stored = decoded.get(own), m = block.size[0] * block.size[1], maps = own.span[0].length;
    const some = chosen < 0 ? own.span.map((_, h) => h) : [chosen], found = new Array(m).fill(0);
    for (const h of some) {
      const [low, high] = own.span[h][k], from = (h * maps + k) * m;
      for (let i = 0; i < m; i++) found[i] += (low + (high - low) * stored[from + i] / 255) / some.length;
    }
    return found;
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

  function heat(canvas, block, map, top) {
    const context = prepare(canvas);
    context.drawImage(pictures[image], 0, 0, canvas.width, canvas.height);
    cells(context, block.size, map, top);
  }

  // where the answer stands
  function frame(context, boxes) {
    const { width, height } = context.canvas, line = Math.max(width / 180, 1.5);
    for (const [top, left, bottom, right] of boxes || []) {
      const at = [left * width, top * height, (right - left) * width, (bottom - top) * height];
      context.lineWidth = line * 2;
      context.strokeStyle = "#000";
      context.strokeRect(...at);
      context.setLineDash([line * 4, line * 3]);
      context.lineWidth = line;
      context.strokeStyle = "#fff";
      context.strokeRect(...at);
      context.setLineDash([]);
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
  Promise.all(pictures.map(p => p.decode().catch(() => {}))).then(() => {
    image = data.start;
    move(...data.images[image].start);
  });
}

function nearest(block, y, x) {
  let best = 0, least = Infinity;
  block.query.forEach(([qy, qx], i) => {
    const distance = (qy - y) ** 2 + (qx - x) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

// ---- values of curves at a step: by pointer, touch, or arrow keys -------------------------------------------------
for (const figure of document.querySelectorAll("figure[data-curves]")) curves(figure);

function curves(figure) {
  const svg = figure.querySelector("svg.chart"), { plots, left, right, last } = JSON.parse(figure.dataset.curves);
  const steps = plots.reduce((a, p) => (p.steps.length > a.length ? p.steps : a), []);
  if (!steps.length) return;
  const readout = figure.querySelector(".readout"), marks = [];
  let at = steps.length - 1;
  const add = (kind, parent = svg) => parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", kind));
  const rule = add("line");
  rule.setAttribute("class", "rule");
  const toX = step => left + (right - left) * step / last;

  // the end of training stands there until somebody points elsewhere
  function draw(on) {
    for (const mark of marks.splice(0)) mark.remove();
    rule.setAttribute("visibility", on ? "visible" : "hidden");
    if (!on) at = steps.length - 1;
    readout.setAttribute("aria-live", on ? "polite" : "off");
    const step = steps[at], x = toX(step);
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", plots[0].top], ["y2", plots[plots.length - 1].bottom]]) rule.setAttribute(name, value);
    readout.textContent = `step ${step.toLocaleString("en").replaceAll(",", "\u202f")}`;
    for (const plot of plots) {
      let k = -1;
      plot.steps.forEach((s, i) => { if (s <= step) k = i; });
      if (k < 0) continue;
      const said = plot.series.map(({ name, values, seeds }) => {
        const each = on && seeds ? ` (${seeds.map(of => say(of[k])).join(", ")})` : "";
        return `${name && name + " "}${say(values[k])}${each}`;
      });
      readout.append(document.createElement("br"), `${plot.title}: ${said.join(", ")}`);
      for (const { values, colour } of on ? plot.series : []) {
        if (values[k] === null) continue;
        const v = plot.log ? Math.log10(values[k]) : values[k], dot = add("circle");
        dot.setAttribute("cx", toX(plot.steps[k]));
        dot.setAttribute("cy", plot.bottom - 2 - (plot.bottom - plot.top - 4) * (v - plot.low) / (plot.high - plot.low || 1));
        dot.setAttribute("r", 3);
        dot.setAttribute("fill", colour);
        marks.push(dot);
      }
    }
  }

  function near(clientX) {
    const box = svg.getBoundingClientRect(), step = last * ((clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / (right - left);
    at = steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0);
    draw(true);
  }
  svg.addEventListener("pointermove", event => near(event.clientX));
  svg.addEventListener("pointerdown", event => near(event.clientX));
  svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") draw(document.activeElement === figure); });
  draw(false);
  figure.addEventListener("focus", () => draw(true));
  figure.addEventListener("blur", () => draw(false));
  figure.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.min(Math.max(at + step, 0), steps.length - 1);
    draw(true);
  });
}

function say(value) {
  if (value === null) return "–";
  return (Math.abs(value) >= 100 ? value.toFixed(0) : value === 0 ? "0" : value.toPrecision(3)).replace("-", "−");
}
