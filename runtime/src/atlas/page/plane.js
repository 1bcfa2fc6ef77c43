// The map: concepts that are alike lie close to each other. And the figures, and the views.
const plane = byId("plane");
const view = { zoom: 1, x: 0, y: 0 };
const points = concepts.map((concept) => make(
  "button", {
    className: concept.segments ? "point" : "point unseen", tabIndex: -1, dataset: { concept: concept.id },
    onclick: () => { if (!dragged) show(concept.id); },
  }, small(concept.id, 34),
));
const board = make("div", { className: "board" }, ...points);
plane.append(
  board,
  make("div", { className: "zoom" },
    make("button", { ariaLabel: "Zoom in", title: "Zoom in (+)", onclick: () => zoom(1.4) }, "+"),
    make("button", { ariaLabel: "Zoom out", title: "Zoom out (−)", onclick: () => zoom(1 / 1.4) }, "−"),
    make("button", { ariaLabel: "Show all", title: "Show all (0)", onclick: () => zoom(0) }, "⤢")),
  make("p", { className: "note" }, "Concepts that are alike lie close to each other. The wheel zooms, dragging moves."),
);

function place(id) {
  const margin = 26;
  const [x, y] = concepts[id].at;
  return [
    margin + x * (board.clientWidth - 2 * margin) * view.zoom + view.x,
    margin + y * (board.clientHeight - 2 * margin) * view.zoom + view.y,
  ];
}

function layOut() {
  if (plane.hidden) return;
  points.forEach((point, id) => {
    const [x, y] = place(id);
    point.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) translate(-50%, -50%)`;
  });
}

/** Zooms around a place of the board; 0 shows everything. */
function zoom(factor, x = board.clientWidth / 2, y = board.clientHeight / 2) {
  const before = view.zoom;
  if (factor === 0) Object.assign(view, { zoom: 1, x: 0, y: 0 });
  else {
    view.zoom = Math.min(12, Math.max(1, before * factor));
    view.x = x - ((x - view.x) * view.zoom) / before;
    view.y = y - ((y - view.y) * view.zoom) / before;
    if (view.zoom === 1) Object.assign(view, { x: 0, y: 0 });
  }
  layOut();
}

let dragged = false;
board.addEventListener("wheel", (event) => {
  const box = board.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  event.preventDefault();
}, { passive: false });
board.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  const start = { x: event.clientX - view.x, y: event.clientY - view.y };
  dragged = false;
  const move = (next) => {
    const [x, y] = [next.clientX - start.x, next.clientY - start.y];
    if (Math.hypot(x - view.x, y - view.y) > 4) dragged = true;
    if (dragged) { Object.assign(view, { x, y }); layOut(); }
  };
  const up = () => {
    window.removeEventListener("pointermove", move);
    window.removeEventListener("pointerup", up);
    // The click of this very drag comes first.
    setTimeout(() => { dragged = false; });
  };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", up);
});

/** The next point that way: near, and not far off the direction. */
function towards(id, dx, dy) {
  const [x, y] = place(id);
  let best = null, least = Infinity;
  for (const { id: other } of shown) {
    const [ox, oy] = place(other);
    const along = (ox - x) * dx + (oy - y) * dy;
    const across = Math.abs((ox - x) * dy - (oy - y) * dx);
    if (other === id || along <= 0 || across > 2 * along) continue;
    const cost = along + 2 * across;
    if (cost < least) [best, least] = [other, cost];
  }
  return best;
}

function focusPoint(id) {
  for (const point of points) point.tabIndex = -1;
  points[id].tabIndex = 0;
  points[id].focus({ preventScroll: true });
}

plane.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const point = event.target.closest(".point");
  if (event.key in ways && point) {
    const next = towards(Number(point.dataset.concept), ...ways[event.key]);
    if (next !== null) focusPoint(next);
    event.preventDefault();
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") zoom(0);
});

/** Fades what the search leaves out. */
function dim(kept) {
  points.forEach((point, id) => {
    point.classList.toggle("dim", !kept.has(id));
    point.title = titleOf(id);
    point.ariaLabel = titleOf(id);
    point.style.borderColor = colorOf(id);
  });
  if (shown.length && !shown.some(({ id }) => points[id].tabIndex === 0)) {
    for (const point of points) point.tabIndex = -1;
    points[shown[0].id].tabIndex = 0;
  }
}
new ResizeObserver(layOut).observe(board);

function drawFigures() {
  const used = concepts.filter((c) => c.segments).sort((a, b) => b.area - a.area);
  byId("use").append(bars(used.map((c) => 100 * c.area), {
    width: 720, height: 200, from: "concept of the most area", to: "of the least",
  }), make("figcaption", { className: "note" }, "Share of the area of each concept, %."));
  const sums = concepts.reduce(
    (all, { histogram }) => all.map((n, i) => n + histogram[i]), concepts[0].histogram.map(() => 0),
  );
  byId("similarity").append(bars(sums, { width: 720, height: 200, from: atlas.lowest.toFixed(1), to: "1.0" }));
}

const views = ["list", "plane", "figures"];
function turnTo(name) {
  for (const id of views) {
    byId(id).hidden = id !== name;
    const tab = byId(`tab-${id}`);
    tab.ariaSelected = String(id === name);
    tab.tabIndex = id === name ? 0 : -1;
  }
  byId("none").hidden = shown.length > 0 || name !== "list";
  if (name === "figures" && !byId("use").childElementCount) drawFigures();
  layOut();
}
for (const id of views) {
  const tab = byId(`tab-${id}`);
  tab.addEventListener("click", () => turnTo(id));
  tab.addEventListener("keydown", ({ key: pressed }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[pressed];
    if (!step) return;
    const next = views[(views.indexOf(id) + step + views.length) % views.length];
    turnTo(next);
    byId(`tab-${next}`).focus();
  });
}
