const RAMP = ["#0d0887", "#46039f", "#7201a8", "#9c179e", "#bd3786", "#d8576b", "#ed7953", "#fb9f3a", "#fdca26", "#f0f921"];
const SIDES = [[0, -1], [1, 0], [0, 1], [-1, 0]];
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
for (const look of data.looks) Object.assign(look, data.maps[look.map]);
for (const { why } of data.looks) for (const [name, list] of Object.entries(why?.lists ?? {})) why[name] = data.lists[list];
const { picture, grid } = data;
const boxes = Float64Array.from(data.boxes);
const box = (i) => boxes.subarray(4 * i, 4 * i + 4);
const area = (i) => (box(i)[2] - box(i)[0]) * (box(i)[3] - box(i)[1]);
const largestFirst = [...Array(boxes.length / 4).keys()].filter((i) => area(i) > 0).sort((a, b) => area(b) - area(a));
const peak = Math.max(2, ...data.looks.map((look) => Math.max(...look.spent) / look.fair));
const state = { question: 0, patch: -1, opacity: 0.75, outlines: true };
const photo = new Image();
let panels = [];
let pending = 0;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const short = (value, digits = 3) => String(Number(value.toPrecision(digits)));
const counted = (number, one, many) => `${number} ${Number(number) === 1 ? one : many}`;
const clamped = (value) => Math.min(1, Math.max(0, value));
const colours = Array.from({ length: 256 }, (_, step) => {
  const low = Math.min(Math.floor((step / 255) * (RAMP.length - 1)), RAMP.length - 2);
  const part = (step / 255) * (RAMP.length - 1) - low;
  const channel = (colour, at) => parseInt(colour.slice(at, at + 2), 16);
  return `rgb(${[1, 3, 5].map((at) => Math.round((1 - part) * channel(RAMP[low], at) + part * channel(RAMP[low + 1], at)))})`;
});

function hit(x, y) {
  let found = -1;
  for (const i of largestFirst) {
    const [x0, y0, x1, y1] = box(i);
    if (x0 <= x && x <= x1 && y0 <= y && y <= y1 && (found < 0 || area(i) < area(found))) found = i;
  }
  return found;
}

function beside(i, [dx, dy]) {
  const centre = (j) => [(box(j)[0] + box(j)[2]) * picture.width, (box(j)[1] + box(j)[3]) * picture.height];
  const [x, y] = centre(i);
  let [best, least] = [i, Infinity];
  for (const j of largestFirst) {
    const [u, v] = [centre(j)[0] - x, centre(j)[1] - y];
    const along = u * dx + v * dy;
    const cost = along + 3 * Math.abs(u * dy + v * dx);
    if (along > 1e-3 && cost < least) [best, least] = [j, cost];
  }
  return best;
}

function neighbour(i, [dx, dy]) {
  if (!grid || grid[0] !== 1) return -1;
  const [row, column] = [Math.floor(i / grid[2]) + dy, (i % grid[2]) + dx];
  return row < 0 || row >= grid[1] || column < 0 || column >= grid[2] ? -1 : row * grid[2] + column;
}

function rectangle(i, { width, height }) {
  const [x0, y0, x1, y1] = box(i);
  const [x, y] = [Math.round(x0 * width), Math.round(y0 * height)];
  return [x, y, Math.round(x1 * width) - x, Math.round(y1 * height) - y];
}

function borders(canvas, parted, chosen, thick) {
  const path = new Path2D();
  for (const i of largestFirst.filter(chosen)) {
    const [x, y, w, h] = rectangle(i, canvas);
    for (const [dx, dy] of SIDES) {
      if (!parted(i, neighbour(i, [dx, dy]))) continue;
      const left = Math.min(x + (dx > 0 ? w : 0), canvas.width - thick);
      const upper = Math.min(y + (dy > 0 ? h : 0), canvas.height - thick);
      path.rect(left, upper, dx ? thick : w + thick, dy ? thick : h + thick);
    }
  }
  return path;
}

const apart = (owner) => (i, j) => owner[i] !== owner[j];

function drawPhoto(ctx, { width, height }, grey) {
  ctx.globalAlpha = 1;
  ctx.fillStyle = "#808080";
  ctx.imageSmoothingQuality = "high";
  ctx.fillRect(0, 0, width, height);
  if (photo.naturalWidth) ctx.drawImage(photo, 0, 0, width, height);
  ctx.globalCompositeOperation = "saturation";
  ctx.globalAlpha = grey;
  ctx.fillRect(0, 0, width, height);
  ctx.globalCompositeOperation = "source-over";
}

function drawCells(ctx, canvas, heat) {
  const layer = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  const cells = largestFirst.map((i) => [i, heat(i)]);
  const dark = cells.filter(([, value]) => value === null);
  const lit = cells.filter(([, value]) => value !== null);
  for (const [i, value] of [...dark, ...lit]) {
    layer.fillStyle = value === null ? "#08080c" : colours[Math.round(255 * clamped(value))];
    layer.fillRect(...rectangle(i, canvas));
  }
  drawPhoto(ctx, canvas, state.opacity);
  ctx.globalAlpha = state.opacity;
  ctx.drawImage(layer.canvas, 0, 0);
}

function photoPanel() {
  const value = (i) => {
    const [x0, y0, x1, y1] = box(i);
    return `${Math.round((x1 - x0) * picture.width)} × ${Math.round((y1 - y0) * picture.height)} px of the photo`;
  };
  return { title: "photo", caption: ["the original, without overlay"], draw: (ctx, canvas) => drawPhoto(ctx, canvas, 0), value };
}

function ranged(values) {
  const sorted = largestFirst.map((i) => values[i]).filter((value) => value !== null).sort((a, b) => a - b);
  const [low, high] = [0.01, 0.99].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  const heat = (i) => (values[i] === null ? null : (values[i] - low) / (high - low || 1));
  const draw = (ctx, canvas) => drawCells(ctx, canvas, heat);
  const scale = legend(`≤ ${short(low, 2)}`, short((low + high) / 2, 2), `≥ ${short(high, 2)}`);
  return { sorted, draw, scale };
}

function relevancePanel() {
  const values = data.relevance[state.question];
  const { sorted, draw, scale } = ranged(values);
  const value = (i) => {
    const rank = 1 + sorted.filter((other) => other > values[i]).length;
    const top = ((100 * rank) / sorted.length).toFixed(1);
    return `relevance ${short(values[i])}, rank ${rank} of ${sorted.length} (top ${top} %)`;
  };
  return { title: "relevance", caption: ["relevance to the question (the eye's own)", scale], draw, value };
}

function drawOutlines(ctx, canvas, owner) {
  if (!state.outlines) return;
  ctx.globalAlpha = 0.5;
  ctx.fillStyle = "#fff";
  ctx.fill(borders(canvas, apart(owner), (i) => owner[i] >= 0, Math.max(1, Math.floor(devicePixelRatio))));
}

const timesFair = (times) => (times ? 0.5 + Math.log(times) / Math.log(peak) / 2 : null);

function spendingPanel(look) {
  const { title, owner, spent, fair } = look;
  const draw = (ctx, canvas) => {
    drawCells(ctx, canvas, (i) => timesFair(spent[i] / fair));
    drawOutlines(ctx, canvas, owner);
  };
  const value = (i) => {
    if (owner[i] < 0) return "0 tokens spent: not read";
    const most = look.readers ? ` most, of ${counted(look.readers[i], "output", "outputs")}` : "";
    const tokens = counted(short(spent[i]), "token", "tokens");
    const reads = counted(look.reads[owner[i]], "patch", "patches");
    return `${tokens} spent, ${short(spent[i] / fair)} × the fair share: read by output ${owner[i]}${most} (with ${reads})`;
  };
  const bar = el("div", { class: "share", "aria-hidden": "true" }, el("i"), el("b"));
  bar.firstChild.style.width = `${100 * look.nearest}%`;
  const share = el("strong", {}, `${(100 * look.nearest).toFixed(0)} %`);
  return { title, caption: [share, " of the budget on the nearest quarter (chance: 25 %)", bar, look.note], draw, value, owner };
}

function legend(...ticks) {
  const ramp = el("div", { class: "ramp" });
  ramp.style.background = `linear-gradient(90deg, ${RAMP.join(", ")})`;
  return el("div", {}, ramp, el("div", { class: "ticks" }, ...ticks.map((tick) => el("span", {}, tick))));
}

function mount(panel) {
  const label = `${panel.title}: arrow keys choose a patch`;
  panel.canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": "map", "aria-label": label });
  panel.canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
  panel.base = document.createElement("canvas");
  panel.text = el("p", { class: "value" });
  listen(panel.canvas);
  return el("figure", {}, el("h3", {}, panel.title), panel.canvas, el("figcaption", {}, ...panel.caption), panel.text);
}

function listen(canvas) {
  const point = (event) => {
    const frame = canvas.getBoundingClientRect();
    choose(hit(clamped((event.clientX - frame.left) / frame.width), clamped((event.clientY - frame.top) / frame.height)));
  };
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && choose(-1));
  canvas.addEventListener("keydown", (event) => {
    const side = SIDES[["ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft"].indexOf(event.key)];
    const step = { PageUp: -1, PageDown: 1 }[event.key];
    const count = boxes.length / 4;
    if (event.key === "Escape") choose(-1);
    else if (side) choose(state.patch < 0 ? hit(0.5, 0.5) : beside(state.patch, side));
    else if (step) choose((Math.max(state.patch, 0) + step + count) % count);
    else return;
    event.preventDefault();
  });
}

function choose(patch) {
  if (patch === state.patch) return;
  state.patch = patch;
  describe();
  later(false);
}

function describe() {
  const i = state.patch;
  for (const panel of panels) panel.text.textContent = i < 0 ? "" : panel.value(i);
  byId("status").replaceChildren(...(i < 0 ? ["No patch chosen"] : [where(i), ...reasons(i)]));
}

function where(i) {
  const [x0, y0, x1, y1] = [...box(i)].map((side, k) => Math.round(side * (k % 2 ? picture.height : picture.width)));
  const pixels = `x ${x0} to ${x1}, y ${y0} to ${y1} px`;
  if (!grid) return `Patch ${i}: ${pixels}`;
  const [frames, height, width] = grid;
  const frame = frames > 1 ? `frame ${Math.floor(i / (height * width))}, ` : "";
  return `Patch ${i} (from 0): ${frame}row ${Math.floor(i / width) % height}, column ${i % width}; ${pixels}`;
}

function later(all) {
  for (const panel of panels) panel.stale ||= all;
  pending ||= requestAnimationFrame(redraw);
}

function redraw() {
  pending = 0;
  for (const panel of panels) {
    const { canvas, base } = panel;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * devicePixelRatio)));
    if (panel.stale || base.width !== width || base.height !== height) {
      for (const each of [canvas, base]) [each.width, each.height] = [width, height];
      panel.draw(base.getContext("2d"), base);
      panel.stale = false;
    }
    canvas.getContext("2d").drawImage(base, 0, 0);
    if (state.patch >= 0) drawChosen(canvas.getContext("2d"), panel);
  }
}

function drawChosen(ctx, { canvas, owner }) {
  const thick = Math.max(1, Math.round(devicePixelRatio));
  const [x, y, w, h] = rectangle(state.patch, canvas);
  ctx.fillStyle = "#00e5ff";
  if (owner?.[state.patch] >= 0 && owner.filter((output) => output === owner[state.patch]).length > 1) {
    ctx.fill(borders(canvas, apart(owner), (i) => owner[i] === owner[state.patch], 2 * thick));
  }
  for (const [style, line] of [["#000", 5 * thick], ["#00e5ff", 2 * thick]]) {
    [ctx.strokeStyle, ctx.lineWidth] = [style, line];
    ctx.beginPath();
    ctx.arc(x + w / 2, y + h / 2, Math.hypot(w, h) / 2 + 7 * thick, 0, 2 * Math.PI);
    ctx.stroke();
  }
  ctx.lineWidth = thick;
  ctx.strokeRect(x - thick / 2, y - thick / 2, w + thick, h + thick);
}

function ask(question) {
  state.question = question;
  for (const [i, tab] of [...byId("tabs").children].entries()) {
    tab.setAttribute("aria-selected", String(i === question));
    tab.tabIndex = i === question ? 0 : -1;
  }
  byId("view").setAttribute("aria-labelledby", `tab-${question}`);
  byId("number").textContent = `Question ${question + 1} of ${data.questions.length}:`;
  byId("question").textContent = data.questions[question];
  for (const [i, body] of [...byId("table").tBodies].entries()) body.classList.toggle("current", i === question);
  const looks = data.looks.filter((look) => look.question === question);
  panels = [photoPanel(), relevancePanel(), ...looks.map(spendingPanel)];
  byId("panels").replaceChildren(...panels.map(mount));
  byId("why").replaceChildren(...looks.filter((look) => look.why).map(explanation));
  describe();
  later(true);
}

function makeTabs() {
  const tabs = data.questions.map((text, i) => el("button", { role: "tab", id: `tab-${i}`, "aria-controls": "view", title: text }, text));
  byId("tabs").append(...tabs);
  tabs.forEach((tab, i) => tab.addEventListener("click", () => ask(i)));
  byId("tabs").addEventListener("keydown", (event) => {
    const [i, last] = [state.question, tabs.length - 1];
    const next = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i === 0 ? last : i - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    ask(next);
    tabs[next].focus();
  });
}

function makeTable() {
  const { caption, names } = data.table;
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)));
  byId("table").append(el("caption", {}, el("span", {}, caption)), el("thead", {}, head));
  for (const [question, text] of data.questions.entries()) {
    const looks = data.looks.filter((look) => look.question === question);
    const rows = looks.map((look) => el("tr", {}, el("th", { scope: "row" }, look.title), ...look.cells.map((cell) => el("td", {}, cell))));
    rows[0]?.prepend(el("th", { scope: "rowgroup", rowspan: rows.length }, text));
    byId("table").append(el("tbody", {}, ...rows));
  }
}

function makeAnswers() {
  const cards = data.answers.map((answer) => {
    const bar = el("div", { class: "stages", "aria-hidden": "true" });
    for (const [stage, share] of Object.entries(answer.shares)) {
      bar.append(el("i", { class: stage }));
      bar.lastChild.style.width = `${100 * share}%`;
    }
    const head = el("h3", {}, answer.name, el("span", {}, answer.tokens));
    const times = el("p", {}, el("strong", {}, answer.first));
    return el("article", { class: "card" }, head, el("blockquote", {}, answer.text || "(nothing)"), bar, times, el("p", { class: "muted" }, answer.cost));
  });
  byId("cards").append(...cards);
  byId("answers").hidden = !cards.length;
}

function makeTexts() {
  byId("name").textContent = picture.name;
  byId("facts").append(...Object.entries(data.facts).map(([name, fact]) => el("div", {}, el("dt", {}, name), el("dd", {}, fact))));
  byId("notes").append(...data.notes.map((note) => el("li", {}, note)));
  byId("notes").hidden = !data.notes.length;
  byId("legend").append(legend(`≤ ${short(1 / peak, 2)} ×`, "1 × (fair)", `${short(peak, 2)} ×`));
  byId("small").append(...data.small.map((text) => el("p", {}, text)));
}
