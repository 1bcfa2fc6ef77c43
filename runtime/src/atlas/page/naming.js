// Names, colours and marks: changed here, saved by the server that sent the page.
const token = new URLSearchParams(location.search).get("token");
const served = location.protocol.startsWith("http") && token !== null;
const chosen = new Set();

const asColor = (text) => text ?? "#808080";

/** Takes a change into the draft; what is as it was is no change. */
function change(id, field, value) {
  const clean = typeof value === "string" ? value.trim() : value;
  const next = clean === "" ? null : clean;
  if (next === saidOf(id, field)) draft.delete(key(id, field));
  else draft.set(key(id, field), next);
  draftChanged();
}

function draftChanged() {
  byId("save").disabled = draft.size === 0;
  byId("undo").disabled = draft.size === 0;
  byId("save").textContent = draft.size ? `Save ${plural(draft.size, "change")}` : "Saved";
  namesChanged();
}

const marks = [[null, "nothing"], ["alert", "alert"], ["ignore", "ignore"]];

/** The fields for one concept or several. */
function fields(prefix, ids, now) {
  const all = (field, value) => ids().forEach((id) => change(id, field, value));
  const name = make("input", {
    id: `${prefix}-name`, type: "text", maxLength: 80, placeholder: "Name", ariaLabel: "Name",
    autocomplete: "off", value: now("name") ?? "",
    onkeydown: (event) => { if (event.key === "Enter") { name.blur(); if (event.ctrlKey) save(); } },
    onchange: () => all("name", name.value),
  });
  name.setAttribute("list", "names");
  const color = make("input", {
    id: `${prefix}-color`, type: "color", ariaLabel: "Colour", value: asColor(now("color") ?? now("shown")),
    onchange: () => all("color", color.value),
  });
  const mark = make("select", {
    id: `${prefix}-mark`, ariaLabel: "Mark", onchange: () => all("mark", mark.value || null),
  }, ...marks.map(([value, text]) => make("option", { value: value ?? "" }, text)));
  mark.value = now("mark") ?? "";
  const plain = now("color") === null ? null : make("button", { onclick: () => all("color", null) }, "plain colour");
  return [name, color, plain, make("label", {}, "Mark ", mark)].filter((part) => part);
}

function edit(id) {
  const others = (named.get(nameOf(id)) ?? []).filter((other) => other !== id);
  return make(
    "div", { className: "editor" },
    ...fields("edit", () => [id], (field) => (field === "shown" ? colorOf(id) : valueOf(id, field))),
    others.length ? make(
      "p", { className: "note" }, `One with ${others.length === 1 ? "concept" : "concepts"} `,
      ...others.flatMap((other, i) => [i ? ", " : "", make("a", { href: `#${other}` }, String(other))]),
    ) : null,
  );
}

function drawBulk() {
  const bulk = byId("bulk");
  bulk.hidden = chosen.size === 0;
  const common = (field) => {
    const values = new Set([...chosen].map((id) => (field === "shown" ? colorOf(id) : valueOf(id, field))));
    return values.size === 1 ? [...values][0] : null;
  };
  bulk.replaceChildren(
    make("b", {}, plural(chosen.size, "concept")),
    ...fields("bulk", () => [...chosen], common),
    make("button", { onclick: () => { chosen.clear(); namesChanged(); } }, "Done"),
  );
}

function choose(id, isChosen) {
  if (isChosen) chosen.add(id);
  else chosen.delete(id);
  cards[id].classList.toggle("chosen", isChosen);
  drawBulk();
}

async function ask(method, content) {
  const response = await fetch("names", {
    method, cache: "no-store",
    headers: { Authorization: `Bearer ${token}`, ...(content ? { "Content-Type": "application/json" } : {}) },
    body: content && JSON.stringify(content),
  });
  const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
  if (!isJson) throw new Error((await response.text()).trim());
  return response.json();
}

/** What the server has; drafts that became true are none any more. */
function take({ version, concepts: entries }) {
  said = { version, concepts: entries };
  for (const [name, value] of draft) {
    const [id, field] = name.split(" ");
    if (value === saidOf(id, field)) draft.delete(name);
  }
  draftChanged();
}

let saving = false;
async function save() {
  document.activeElement?.blur?.();
  if (saving || draft.size === 0) return;
  saving = true;
  const changes = [...draft].map(([name, to]) => {
    const [id, field] = name.split(" ");
    return { concept: Number(id), field, from: saidOf(id, field), to };
  });
  try {
    const answer = await ask("POST", { base: said.version, changes });
    take(answer);
    if (answer.conflicts.length) settle(answer.conflicts);
    else tell(answer.merged ? "Saved, together with what somebody else saved meanwhile." : "Saved.");
    byId("export").hidden = true;
  } catch (error) {
    // A fetch that reaches nobody is a TypeError, whose text says little.
    const reason = error instanceof TypeError ? "the atlas does not answer; start it again." : `${error.message}.`;
    tell(`Not saved: ${reason} Your changes are still here; “Export changes” writes them to a file.`, true);
    byId("export").hidden = false;
  } finally {
    saving = false;
  }
}

/** Writes the changed concepts to a file that `conceptseg concepts import` takes. */
function exportDraft() {
  const ids = [...new Set([...draft.keys()].map((name) => name.split(" ")[0]))];
  const entry = (id) => Object.fromEntries(
    ["name", "color", "mark"].map((field) => [field, valueOf(id, field)]).filter(([, value]) => value !== null),
  );
  const text = JSON.stringify({ concepts: Object.fromEntries(ids.map((id) => [id, entry(id)])) }, null, 2);
  const url = URL.createObjectURL(new Blob([`${text}\n`], { type: "application/json" }));
  make("a", { href: url, download: "names.json" }).click();
  // The browser needs the address until it has begun to write.
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

/** Somebody else was faster: shows both values, and lets the person choose. */
function settle(conflicts) {
  const dialog = byId("conflicts");
  const text = (value) => (value === null ? "nothing" : `“${value}”`);
  const rows = conflicts.map((conflict) => {
    const mine = make("input", { type: "radio", name: `${conflict.concept} ${conflict.field}` });
    const theirs = make("input", { type: "radio", name: `${conflict.concept} ${conflict.field}`, checked: true });
    return { conflict, mine, row: make(
      "fieldset", {}, small(conflict.concept, 36),
      make("legend", {}, `${conflict.field} of concept ${conflict.concept}`),
      make("label", {}, theirs, ` keep theirs: ${text(conflict.theirs)}`),
      make("label", {}, mine, ` use mine: ${text(conflict.to)}`),
    ) };
  });
  const done = () => {
    for (const { conflict, mine } of rows) if (!mine.checked) draft.delete(key(conflict.concept, conflict.field));
    dialog.close();
    draftChanged();
    save();
  };
  dialog.replaceChildren(
    make("h2", {}, "Somebody else changed the same"),
    make("p", {}, "Everything else is saved. Nothing of theirs is lost unless you choose yours."),
    ...rows.map(({ row }) => row),
    make("div", { className: "row" }, make("button", { className: "main", id: "settle", onclick: done }, "Go on")),
  );
  dialog.showModal();
}

/** Looks now and then what others have saved. */
async function refresh() {
  if (document.hidden || saving) return;
  try {
    const answer = await ask("GET");
    if (answer.version !== said.version && !saving) take(answer);
  } catch {
    // The next save tells.
  }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=checkbox]), select, dialog");
  if (event.key === "Escape" && !byId("conflicts").open) {
    if (event.target === byId("find")) { byId("find").value = ""; arrange(); byId("find").blur(); }
    else if (typing && panel.contains(event.target)) panel.focus();
    else if (open !== null) close();
    else if (chosen.size) { chosen.clear(); namesChanged(); }
  } else if (event.key === "s" && (event.ctrlKey || event.metaKey) && served) {
    event.preventDefault();
    save();
  } else if (typing || event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (event.key === "/") {
    byId("find").focus();
    event.preventDefault();
  } else if (event.key === "n" || event.key === "N") {
    const input = byId("edit-name");
    if (input) { input.focus(); input.select(); event.preventDefault(); }
  }
});

if (served) {
  const known = make("datalist", { id: "names" });
  document.body.append(known);
  byId("saving").hidden = false;
  byId("save").addEventListener("click", save);
  byId("export").addEventListener("click", exportDraft);
  byId("undo").addEventListener("click", () => { draft.clear(); byId("export").hidden = true; draftChanged(); });
  editor = edit;
  chooser = (id) => make("input", {
    type: "checkbox", checked: chosen.has(id), tabIndex: -1, ariaLabel: `Choose ${titleOf(id)}`,
    onchange: (event) => choose(id, event.target.checked),
  });
  onNames(() => {
    known.replaceChildren(...[...named.keys()].sort().map((value) => make("option", { value })));
    for (const { id } of concepts) cards[id].classList.toggle("chosen", chosen.has(id));
    if (!byId("bulk").contains(document.activeElement)) drawBulk();
  });
  window.addEventListener("beforeunload", (event) => { if (draft.size) event.preventDefault(); });
  setInterval(refresh, 15000);
  document.addEventListener("visibilitychange", refresh);
}

draftChanged();
for (const card of cards) near.observe(card);
turnTo("list");
followHash();
if (served) refresh().then(() => document.body.classList.add("ready"));
else document.body.classList.add("ready");
