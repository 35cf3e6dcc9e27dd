const FRESH = "#39ff88";

function explanation(look) {
  const { why } = look;
  const maps = [...why.ways.map((way) => wayPanel(why, way)), fieldPanel(why), ...weightPanel(why)];
  const regions = regionsPanel(look);
  panels.push(...maps, regions);
  const shown = el("div", { class: "panels" }, ...maps.map(mount), mount(regions));
  const head = el("h2", {}, `Why ${why.name} spent its tokens there`);
  return el("section", { "aria-label": head.textContent }, head, ...facts(why), el("div", { class: "dials" }, ...why.dials.map(dial)), shown);
}

function facts({ fact, path }) {
  const said = [el("p", { class: "read" }, el("strong", {}, `${fact.name} ${fact.value}`.trim()), `: ${fact.about}`)];
  if (path.length) said.push(el("p", { class: "read" }, `Earlier looks led to ${path.join(", then to ")}.`));
  said.push(el("p", { class: "read muted" }, "Three tensions: where each stands between its poles, and how strongly either side pulls."));
  return said;
}

function dial({ name, state: at, value, poles, pulls }) {
  const pulled = pulls.length ? `: ${pulls[1]}, against ${pulls[0]}` : "";
  const label = `${name}, from 0, ${poles[0]}, to 1, ${poles[1]}`;
  const meter = { role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": at };
  const track = el("div", { class: "track", ...meter, "aria-valuetext": value + pulled }, el("i"));
  track.firstChild.style.left = `${100 * at}%`;
  const ends = poles.map((pole, side) => el("div", {}, el("b", {}, pole), pulls[side] ?? ""));
  return el("div", { class: "card dial" }, el("h3", {}, name, el("span", {}, value)), track, el("div", { class: "ends muted" }, ...ends));
}

function wayPanel(why, { name, share, about }) {
  const values = why[name];
  const { draw, scale } = ranged(values);
  const value = (i) => (values[i] === null ? "not a token" : `${name} ${short(values[i])}`);
  return { title: name, caption: [el("strong", {}, share), ` of the field; ${about}`, scale], draw, value };
}

function averagePanel(title, about, values) {
  const draw = (ctx, canvas) => drawCells(ctx, canvas, (i) => (values[i] === null ? null : timesFair(values[i] || 1e-9)));
  const value = (i) => (values[i] === null ? "not a token" : `${short(values[i])} × the average`);
  const scale = legend(`≤ ${short(1 / peak, 2)} ×`, "1 × the average", `≥ ${short(peak, 2)} ×`);
  return { title, caption: [about, scale], draw, value };
}

const fieldPanel = ({ field }) => averagePanel("field", "the relevance: the three ways, weighted", field);

function weightPanel(why) {
  const weight = why.field.map((value, i) => (value === null ? null : why.terms.reduce((sum, term) => sum + why[term][i], 0)));
  const moved = weight.reduce((sum, value, i) => sum + Math.abs(value - why.field[i]), 0) / 2 / why.line.length;
  return moved > 0.01 ? [averagePanel("weight", `each patch's: ${why.terms.join(" + ")}`, weight)] : [];
}

function partition({ line, cuts }, budget) {
  const begins = new Uint8Array(line.length);
  for (const cut of cuts.slice(0, budget - 1)) begins[cut] = 1;
  const owner = new Int32Array(boxes.length / 4).fill(-1);
  let region = 0;
  line.forEach((token, place) => (owner[token] = region += begins[place]));
  return owner;
}

function regionsPanel({ why }) {
  const panel = { title: "regions at any budget", note: el("div", { class: "note" }) };
  const count = why.line.length;
  panel.show = (budget, since) => {
    Object.assign(panel, { budget, before: partition(why, since), owner: partition(why, budget), sizes: new Uint32Array(budget) });
    for (const region of panel.owner) if (region >= 0) panel.sizes[region]++;
    panel.note.replaceChildren(...changes(budget, since));
  };
  panel.show(why.budget, why.budget);
  panel.draw = (ctx, canvas) => drawRegions(ctx, canvas, panel, panel.budget / count);
  panel.value = (i) => inRegion(panel.sizes[panel.owner[i]], panel.budget / count);
  panel.caption = [cutting(why, panel), "More budget only cuts regions further, at these states.", panel.note];
  return panel;
}

function changes(budget, since) {
  if (budget === since) return [];
  if (budget < since) return [`${counted(since - budget, "cut", "cuts")} less than at ${counted(since, "token", "tokens")}`];
  const cuts = counted(budget - since, "new cut", "new cuts");
  return [el("i", { class: "key fresh" }), `${cuts} since ${counted(since, "token", "tokens")}`];
}

function inRegion(size, fair) {
  if (!size) return "not a token";
  const spent = counted(short(1 / size), "token", "tokens");
  return `in a region of ${counted(size, "patch", "patches")}: ${spent} a patch, ${short(1 / size / fair)} × the fair share`;
}

function drawRegions(ctx, canvas, { owner, before, sizes }, fair) {
  drawCells(ctx, canvas, (i) => (owner[i] < 0 ? null : timesFair(1 / sizes[owner[i]] / fair)));
  drawOutlines(ctx, canvas, owner);
  const fresh = (i, j) => before[i] === before[j] && owner[i] !== owner[j];
  ctx.globalAlpha = 1;
  ctx.fillStyle = FRESH;
  ctx.fill(borders(canvas, fresh, (i) => owner[i] >= 0, Math.max(1, Math.floor(devicePixelRatio))));
}

function cutting(why, panel) {
  const count = why.line.length;
  const slider = el("input", { type: "range", min: 0, max: 1, step: "any", "aria-label": `budget of ${why.name}` });
  const output = el("output");
  const own = el("button", { type: "button" }, `its own: ${why.budget}`);
  const tell = () => {
    slider.value = Math.log(panel.budget) / (Math.log(count) || 1);
    output.textContent = counted(panel.budget, "token", "tokens") + (panel.budget === why.budget ? ", as this look" : "");
    slider.setAttribute("aria-valuetext", `${output.textContent}, of ${count}`);
  };
  const move = (budget, since) => {
    panel.show(Math.min(count, Math.max(1, budget)), since);
    panel.stale = true;
    tell();
    describe();
    later(false);
  };
  moving(slider, panel, count, move);
  own.addEventListener("click", () => move(why.budget, panel.budget));
  tell();
  return el("div", { class: "cutting" }, el("label", {}, "Budget", slider), output, own);
}

function moving(slider, panel, count, move) {
  let since = null;
  slider.addEventListener("input", () => move(Math.round(count ** slider.value), (since ??= panel.budget)));
  slider.addEventListener("change", () => (since = null));
  slider.addEventListener("keydown", (event) => {
    const next = stepped(event.key, panel.budget, count);
    if (next === undefined) return;
    event.preventDefault();
    move(next, panel.budget);
  });
}

function stepped(key, budget, count) {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[key];
  return step ? budget + step : { Home: 1, End: count, PageUp: Math.ceil(1.25 * budget), PageDown: Math.floor(budget / 1.25) }[key];
}

function reasons(i) {
  const looks = data.looks.filter((look) => look.why && look.question === state.question);
  return looks.map((look) => el("p", { class: "reason" }, reason(look, i)));
}

function reason({ why, owner, reads }, i) {
  if (why.field[i] === null) return `${why.name}: not a token`;
  const region = owner[i] < 0 ? "not read" : `in a region of ${counted(reads[owner[i]], "patch", "patches")} (1 token)`;
  const parts = why.terms.map((term) => `${term} ${why[term][i].toFixed(2)}`);
  const weight = why.terms.reduce((sum, term) => sum + Number(why[term][i].toFixed(2)), 0);
  const ways = why.ways.map(({ name }) => `${name} ${why[name][i].toFixed(2)}`);
  return (
    `${why.name}: ${region}. Weight ${weight.toFixed(2)} × the average = ${parts.join(" + ")}; ways: ${ways.join(", ")}; ` +
    `detail ${short(why.detail[i])} × the average`
  );
}
