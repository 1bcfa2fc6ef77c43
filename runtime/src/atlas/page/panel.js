// The panel of one concept: pictures, figures, and what lies next to it.
const panel = byId("panel");
let open = null;
/** Set by naming.js where the page may change names. */
let editor = () => null;

const markText = { alert: "alert", ignore: "ignored" };
function badge(id) {
  const mark = valueOf(id, "mark");
  return mark ? make("span", { className: `badge ${mark}` }, markText[mark]) : null;
}

function linked(id, note) {
  return make(
    "button",
    { className: "linked", onclick: () => show(id), title: titleOf(id), dataset: { concept: id } },
    small(id, 36), make("span", { className: "name" }, titleOf(id)), make("span", { className: "note" }, note),
  );
}

/** The concepts around one, those that occur together with each other joined too. */
function graph(concept) {
  const width = 380, height = 300, around = concept.together.slice(0, 10);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "graph" });
  const at = new Map([[concept.id, [width / 2, height / 2]]]);
  around.forEach(([id], i) => {
    const angle = (2 * Math.PI * i) / around.length - Math.PI / 2;
    at.set(id, [width / 2 + 145 * Math.cos(angle), height / 2 + 112 * Math.sin(angle)]);
  });
  const strongest = Math.max(1e-9, ...around.map(([, , pmi]) => pmi));
  const join = (a, b, pmi, images, soft) => {
    const [[x1, y1], [x2, y2]] = [at.get(a), at.get(b)];
    const line = svg("line", {
      x1, y1, x2, y2, class: soft ? "soft" : "",
      "stroke-width": soft ? 1 : (1 + (4 * pmi) / strongest).toFixed(1),
    });
    line.append(Object.assign(svg("title"), {
      textContent: `${titleOf(a)} and ${titleOf(b)}: ${plural(images, "image")}, PMI ${pmi.toFixed(2)}`,
    }));
    picture.append(line);
  };
  for (const [id] of around) {
    for (const [other, images, pmi] of concepts[id].together) {
      if (id < other && at.has(other) && other !== concept.id) join(id, other, pmi, images, true);
    }
  }
  for (const [id, images, pmi] of around) join(concept.id, id, pmi, images, false);
  const nodes = make("div", { className: "nodes" });
  for (const [id, [x, y]] of at) {
    nodes.append(make(
      "button",
      {
        className: id === concept.id ? "node here" : "node", title: titleOf(id), ariaLabel: titleOf(id),
        onclick: () => show(id), dataset: { concept: id },
        style: { left: `${(100 * x) / width}%`, top: `${(100 * y) / height}%`, borderColor: colorOf(id) },
      },
      small(id, 44), nameOf(id) ? make("span", {}, nameOf(id)) : null,
    ));
  }
  return make("div", { className: "walk" }, picture, nodes);
}

function similarityPlot(concept) {
  const place = (value) => (value - atlas.lowest) / (1 - atlas.lowest);
  const lines = concept.trained > 0
    ? concept.quantiles
      .map((value, i) => [place(value), `${100 * atlas.quantiles[i]} % when it was learnt: ${value}`])
      .filter(([at]) => at >= 0 && at <= 1)
    : [];
  return bars(concept.histogram, { width: 380, from: atlas.lowest.toFixed(1), to: "1.0", lines });
}

function classBars(concept) {
  const labelled = concept.classes.reduce((sum, [, n]) => sum + n, 0);
  return make("table", { className: "classes" }, ...concept.classes.map(([id, n]) => make(
    "tr", {}, make("th", {}, atlas.classes[id]),
    make("td", {}, make("div", { className: "bar", style: { width: `${(100 * n) / labelled}%` } })),
    make("td", { className: "n" }, String(n)),
  )));
}

const facts = (concept) => make(
  "dl", { className: "facts" },
  ...[
    ["area", percent(concept.area)], ["segments", concept.segments.toLocaleString("en")],
    ["images", concept.images.toLocaleString("en")], ["similarity", concept.similarity.toFixed(2)],
    ...(concept.purity ? [["purity", `${percent(concept.purity[0])} ${classOf(concept)}`]] : []),
    ["learnt from", plural(concept.trained, "segment")],
  ].map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))),
);

function tilesOf(concept, from, to) {
  const places = Array.from({ length: to - from }, (_, i) => from + i);
  return make("div", { className: "tiles" }, ...places.map((place) => tile(concept, place)));
}

function draw() {
  const concept = concepts[open];
  const seen = concept.segments > 0;
  const title = make(
    "div", { className: "top" },
    make("span", { className: "dot", style: { background: colorOf(open) } }),
    make("h2", { id: "panel-title" }, titleOf(open)), badge(open),
    nameOf(open) ? make("span", { className: "note" }, `id ${open}`) : null,
    make("button", { className: "close", ariaLabel: "Close", title: "Close (Esc)", onclick: close }, "×"),
  );
  const parts = [title, editor(open), facts(concept)];
  if (seen) {
    parts.push(make("h3", {}, "Nearest segments"), tilesOf(concept, 0, concept.nearest));
    if (concept.shown.length > concept.nearest) {
      parts.push(make("h3", {}, "Random segments"), tilesOf(concept, concept.nearest, concept.shown.length));
    }
    parts.push(make("h3", {}, "Similarity of its segments"), similarityPlot(concept));
    if (concept.trained > 0) {
      parts.push(make("p", { className: "note" }, "Lines: 5, 25, 50, 75, 95 % of its segments when it was learnt."));
    }
    if (concept.classes.length) parts.push(make("h3", {}, "Classes"), classBars(concept));
    parts.push(make("h3", {}, "Occurs together with"));
    if (concept.together.length) {
      parts.push(graph(concept), make(
        "div", { className: "links" },
        ...concept.together.map(([id, images, pmi]) => linked(id, `${plural(images, "image")}, PMI ${pmi.toFixed(2)}`)),
      ));
    } else {
      parts.push(make("p", { className: "note" }, "No other concept, more often than by chance."));
    }
  } else {
    parts.push(make("p", { className: "note" }, "These images show it nowhere."));
  }
  parts.push(make("h3", {}, "Most alike in the dictionary"), make(
    "div", { className: "links" }, ...concept.alike.map(([id, cosine]) => linked(id, `cosine ${cosine.toFixed(2)}`)),
  ));
  panel.dataset.concept = open;
  panel.replaceChildren(...parts.filter((part) => part));
}

/** Opens a concept; the browser's way back leads to the one before. */
function show(id) {
  if (open === id && !panel.hidden) return;
  if (location.hash === `#${id}`) opened(id);
  else location.hash = `#${id}`;
}

function opened(id) {
  open = id;
  panel.hidden = false;
  document.body.classList.add("with-panel");
  draw();
  panel.scrollTop = 0;
  panel.focus({ preventScroll: true });
  for (const element of document.querySelectorAll(".open")) element.classList.remove("open");
  for (const element of document.querySelectorAll(`#list [data-concept="${id}"], #plane [data-concept="${id}"]`)) {
    element.classList.add("open");
  }
}

function close() {
  const before = open;
  open = null;
  panel.hidden = true;
  document.body.classList.remove("with-panel");
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  for (const element of document.querySelectorAll(".open")) element.classList.remove("open");
  if (before !== null) focusConcept(before);
}

function followHash() {
  const id = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;
  if (id !== null && id < concepts.length) opened(id);
  else if (open !== null) close();
}
window.addEventListener("hashchange", followHash);
window.addEventListener("popstate", followHash);
onNames(() => {
  if (open === null) return;
  // Whoever is typing goes on typing.
  const typing = panel.contains(document.activeElement) && document.activeElement.id;
  const { selectionStart, selectionEnd, value } = document.activeElement;
  const scroll = panel.scrollTop;
  draw();
  panel.scrollTop = scroll;
  if (!typing || typing === "panel") return;
  const again = byId(typing);
  if (!again) return;
  if (again.type === "text") again.value = value;
  again.focus({ preventScroll: true });
  if (selectionStart !== undefined && selectionStart !== null) again.setSelectionRange(selectionStart, selectionEnd);
});
