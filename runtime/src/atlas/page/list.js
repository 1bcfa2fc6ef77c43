// The cards of all concepts: search, order, and the arrow keys.
const list = byId("list");
const cards = concepts.map((concept) => {
  const rows = concept.segments
    ? make("div", { className: "rows" },
      make("div", { className: "tiles nearest", dataset: { from: 0, to: Math.min(concept.nearest, 6) } }),
      make("div", { className: "tiles random", dataset: {
        from: concept.nearest, to: Math.min(concept.shown.length, concept.nearest + 6) } }))
    : make("p", { className: "note" }, "not in these images");
  return make(
    "article", { className: "card", role: "listitem", tabIndex: -1, dataset: { concept: concept.id } },
    make("div", { className: "top" }), make("p", { className: "note figures" }), rows,
  );
});

/** Writes what may change onto a card. */
function label(id) {
  const [concept, card] = [concepts[id], cards[id]];
  const ignored = valueOf(id, "mark") === "ignore";
  card.classList.toggle("ignored", ignored);
  const others = (named.get(nameOf(id)) ?? []).length - 1;
  card.firstChild.replaceChildren(...[
    chooser(id),
    make("span", { className: "dot", style: { background: colorOf(id) } }),
    make("span", { className: nameOf(id) ? "name" : "name none" }, titleOf(id)),
    others > 0 ? make("span", { className: "note", title: "Concepts of the same name" }, `+${others}`) : null,
    badge(id),
    nameOf(id) ? make("span", { className: "note id" }, `id ${id}`) : null,
    concept.purity
      ? make("span", { className: "note class", title: "Purity and class" }, `${percent(concept.purity[0])} ${classOf(concept)}`)
      : null,
  ].filter((part) => part));
  card.setAttribute("aria-label", titleOf(id));
  if (!concept.segments) return;
  card.children[1].textContent = [
    `${percent(concept.area)} of area`, `${plural(concept.segments, "segment")} in ${plural(concept.images, "image")}`,
    `cosine ${concept.similarity.toFixed(2)}`,
  ].join(" · ");
}
/** Set by naming.js where the page may change names. */
let chooser = () => null;

// Tiles are made when a card comes near and taken away when it is far.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const concept = concepts[target.dataset.concept];
    for (const row of target.querySelectorAll(".tiles")) {
      const { from, to } = row.dataset;
      const places = isIntersecting ? Array.from({ length: to - from }, (_, i) => Number(from) + i) : [];
      row.replaceChildren(...places.map((place) => tile(concept, place)));
    }
  }
}, { rootMargin: "600px 0px" });

const keeps = {
  all: () => true,
  used: (concept) => concept.segments > 0,
  unseen: (concept) => concept.segments === 0,
  named: ({ id }) => nameOf(id) !== null,
  unnamed: ({ id }) => nameOf(id) === null,
  alert: ({ id }) => valueOf(id, "mark") === "alert",
  ignore: ({ id }) => valueOf(id, "mark") === "ignore",
};
const orders = {
  area: (a, b) => b.area - a.area,
  segments: (a, b) => b.segments - a.segments,
  images: (a, b) => b.images - a.images,
  similarity: (a, b) => b.similarity - a.similarity,
  purity: (a, b) => (b.purity?.[0] ?? -1) - (a.purity?.[0] ?? -1),
  class: (a, b) => (classOf(a) ?? "\uffff").localeCompare(classOf(b) ?? "\uffff"),
  name: (a, b) => (nameOf(a.id) ?? "\uffff").localeCompare(nameOf(b.id) ?? "\uffff"),
  id: () => 0,
};

let shown = [];
function arrange() {
  const words = byId("find").value.trim().toLowerCase().split(/\s+/).filter((word) => word);
  const text = (concept) =>
    [concept.id, nameOf(concept.id), classOf(concept), valueOf(concept.id, "mark")].join(" ").toLowerCase();
  // A number is an id as a whole: 1 is not meant to find 512.
  const fits = (concept) => words.every(
    (word) => (/^\d+$/.test(word) ? String(concept.id) === word || text(concept).split(" ").slice(1).join(" ").includes(word)
      : text(concept).includes(word)),
  );
  shown = concepts.filter(keeps[byId("show").value]).filter(fits);
  shown.sort((a, b) => orders[byId("sort").value](a, b) || a.id - b.id);
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...shown.map(({ id }) => cards[id]));
  focused?.focus({ preventScroll: true });
  byId("count").textContent = `${shown.length} of ${concepts.length}`;
  byId("none").hidden = shown.length > 0 || list.hidden;
  if (shown.length && !shown.some(({ id }) => cards[id].tabIndex === 0)) reach(shown[0].id);
  dim(new Set(shown.map(({ id }) => id)));
}

/** One card at a time is reached with Tab. */
function reach(id) {
  for (const card of cards) card.tabIndex = -1;
  cards[id].tabIndex = 0;
}

function focusConcept(id) {
  if (!list.hidden) cards[id].focus();
  else if (!byId("plane").hidden) focusPoint(id);
}

function columns() {
  const tops = shown.slice(0, 24).map(({ id }) => cards[id].offsetTop);
  const first = tops.findIndex((top) => top > tops[0]);
  return first < 0 ? Math.max(1, shown.length) : first;
}

list.addEventListener("focusin", (event) => {
  const card = event.target.closest(".card");
  if (card) reach(Number(card.dataset.concept));
});
list.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card && !event.target.closest("input")) show(Number(card.dataset.concept));
});
list.addEventListener("keydown", (event) => {
  const card = event.target.closest(".card");
  if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = shown.findIndex(({ id }) => cards[id] === card);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const ends = { Home: 0, End: shown.length - 1 };
  if (event.key in steps || event.key in ends) {
    const to = event.key in ends ? ends[event.key] : at + steps[event.key];
    if (shown[to]) {
      const next = cards[shown[to].id];
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest" });
    }
    event.preventDefault();
  } else if (event.key === "Enter") {
    show(Number(card.dataset.concept));
  } else if (event.key === " " && event.target === card) {
    card.querySelector("input")?.click();
    event.preventDefault();
  }
});
byId("find").addEventListener("input", arrange);
for (const id of ["show", "sort"]) byId(id).addEventListener("change", arrange);
onNames(() => {
  concepts.forEach(({ id }) => label(id));
  // The order stays while somebody names: cards would jump away under the hand.
  if (open === null) arrange();
});
