// What the page holds, and small helpers.
const read = (id) => document.getElementById(id).textContent;
const atlas = JSON.parse(read("atlas"));
const layout = JSON.parse(read("layout"));
const concepts = atlas.concepts;
concepts.forEach((concept, id) => { concept.id = id; });
const byId = (id) => document.getElementById(id);

/** An element with properties and children; text never becomes markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style" || key === "dataset") Object.assign(element[key], value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const percent = (share) => {
  const value = 100 * share;
  return `${value >= 10 ? value.toFixed(0) : value >= 0.1 || value === 0 ? value.toFixed(1) : "<0.1"} %`;
};
const plural = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

// Pictures become objects of the browser when they are first shown.
const strips = read("strips").split("\n");
const urls = new Map();
function pictureUrl(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
}
function stripUrl(id) {
  if (!strips[id]) return null;
  if (!urls.has(id)) urls.set(id, pictureUrl(strips[id]));
  return urls.get(id);
}
document.documentElement.style.setProperty("--small", `url(${pictureUrl(read("small"))})`);

/** Tile `place` of a concept's strip. */
function tile(concept, place) {
  const [image, similarity] = concept.shown[place];
  const last = concept.shown.length - 1;
  const what = `${image}, similarity ${similarity.toFixed(2)}`;
  return make("span", {
    className: "tile", role: "img", title: what, ariaLabel: what,
    style: {
      backgroundImage: `url(${stripUrl(concept.id)})`,
      backgroundSize: `${100 * (last + 1)}% 100%`,
      backgroundPosition: `${last ? (100 * place) / last : 0}% 0`,
    },
  });
}

/** The small picture of a concept. */
function small(id, side = layout.small) {
  const scale = side / layout.small;
  const rows = Math.ceil(concepts.length / layout.columns);
  const picture = make("span", { className: "small", style: { width: `${side}px`, height: `${side}px` } });
  if (!strips[id]) {
    picture.style.background = colorOf(id);
    return picture;
  }
  Object.assign(picture.style, {
    backgroundSize: `${layout.columns * side}px ${rows * side}px`,
    backgroundPosition:
      `${-(id % layout.columns) * layout.small * scale}px ` +
      `${-Math.floor(id / layout.columns) * layout.small * scale}px`,
  });
  return picture;
}

// What people said: as the server has it, and what was changed here since.
let said = JSON.parse(read("said"));
const draft = new Map();
const key = (id, field) => `${id} ${field}`;
const saidOf = (id, field) => said.concepts[id]?.[field] ?? null;
const valueOf = (id, field) => (draft.has(key(id, field)) ? draft.get(key(id, field)) : saidOf(id, field));
const nameOf = (id) => valueOf(id, "name");
const titleOf = (id) => nameOf(id) ?? `concept ${id}`;

/** The concepts of each name, as drafted. */
function groups() {
  const found = new Map();
  for (const { id } of concepts) {
    const name = nameOf(id);
    if (name !== null) found.set(name, [...(found.get(name) ?? []), id]);
  }
  return found;
}
let named = groups();

/** As overlays draw it: its own colour, that of its name, or the generated one of its name. */
function colorOf(id) {
  const own = valueOf(id, "color");
  const group = named.get(nameOf(id)) ?? [id];
  return own ?? group.map((other) => valueOf(other, "color")).find((c) => c) ?? concepts[group[0]].color;
}

const classOf = (concept) => (concept.purity ? atlas.classes[concept.purity[1]] : null);
const listeners = [];
/** Calls `listener` when what people said has changed, here or elsewhere. */
const onNames = (listener) => listeners.push(listener);
function namesChanged() {
  named = groups();
  listeners.forEach((listener) => listener());
}

function tell(text, isError = false) {
  const told = byId("told");
  told.textContent = text;
  told.classList.toggle("error", isError);
  told.classList.add("shown");
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => told.classList.remove("shown"), isError ? 12000 : 4000);
}

/** Bars as SVG; `lines` are positions 0..1 with a title. */
function bars(values, { width = 340, height = 90, from = "", to = "", lines = [] } = {}) {
  const most = Math.max(1e-12, ...values);
  const step = width / values.length;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height + 18}`, class: "bars", role: "img" });
  values.forEach((value, i) => {
    const h = (value / most) * (height - 2);
    const bar = svg("rect", { x: i * step + 0.4, y: height - h, width: Math.max(step - 0.8, 0.6), height: h });
    bar.append(Object.assign(svg("title"), { textContent: String(value) }));
    picture.append(bar);
  });
  for (const [at, title] of lines) {
    const line = svg("line", { x1: at * width, x2: at * width, y1: 0, y2: height });
    line.append(Object.assign(svg("title"), { textContent: title }));
    picture.append(line);
  }
  picture.append(svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }));
  picture.append(Object.assign(svg("text", { x: 0, y: height + 14 }), { textContent: from }));
  picture.append(Object.assign(svg("text", { x: width, y: height + 14, "text-anchor": "end" }), { textContent: to }));
  return picture;
}
