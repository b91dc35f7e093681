// The bar on top, the keys, and what goes to and from files.

const byId = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const decisions = new Decisions((sha256) => show(sha256));
const FILTERS = [
  ["all", "All", () => true],
  ["todo", "To do", (card) => !card.decided],
  ["corrected", "Corrected", (card) => card.corrected],
  ["right", "Right", (card) => card.decided && !card.corrected],
];
let filter = "all";
let current = null;
const act = {
  label: (card) => decisions.label(card.item.sha256),
  note: (card, text) => decisions.set(card.item.sha256, { note: text }),
  current: setCurrent,
  zoom,
  decide(card, label, byPointer) {
    decide(card, label);
    // So that keys go on from here; who came with the tab key stays where they are.
    if (byPointer) card.node.focus({ preventScroll: true });
  },
};
const cards = page.items.map((item, place) => new Card(item, place, page.items.length, act));
const cardOf = new Map(cards.map((card) => [card.item.sha256, card]));

function say(text, bad = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", bad);
}

function decide(card, label) {
  decisions.decide(card.item.sha256, label);
  const what = card.corrected ? `${shown(label)} instead of ${shown(card.item.label)}` : `${shown(label)} is right`;
  say(cards.every((other) => other.decided) ? `Image ${card.place + 1}: ${what}. All are looked at: save the corrections.` : `Image ${card.place + 1}: ${what}.`);
}

function setCurrent(card) {
  if (current === card) return;
  current?.node.classList.remove("current");
  current = card;
  card.node.classList.add("current");
}

function go(card) {
  if (!card) return;
  setCurrent(card);
  card.node.focus({ preventScroll: true });
  card.node.scrollIntoView({ block: "start", behavior: calm.matches ? "auto" : "smooth" });
}

const visible = () => cards.filter((card) => !card.node.hidden);

function step(by) {
  const there = visible();
  const at = there.indexOf(current);
  go(at < 0 ? there[0] : there[Math.min(there.length - 1, Math.max(0, at + by))]);
}

// The next one to do, from here on and then from the top; when all are done, simply the next.
function goOn() {
  const there = visible();
  const at = there.indexOf(current);
  const todo = [...there.slice(at + 1), ...there.slice(0, at)].find((card) => !card.decided);
  go(todo ?? there[at + 1]);
}

// Without a sha256: everything may have changed.
function show(sha256) {
  const done = cards.filter((card) => card.decided);
  const right = done.filter((card) => !card.corrected).length;
  for (const card of sha256 ? [cardOf.get(sha256)] : cards) card.show(decisions.note(card.item.sha256));
  byId("done").textContent = done.length;
  byId("agreement").textContent = done.length ? ` · ${per100(right / done.length)} of the labels right` : "";
  const [good, bad] = byId("meter").children;
  good.style.width = `${(100 * right) / cards.length}%`;
  bad.style.width = `${(100 * (done.length - right)) / cards.length}%`;
  byId("meter").setAttribute("aria-valuenow", done.length);
  for (const [name, , has] of FILTERS) byId(`filter-${name}`).querySelector("b").textContent = cards.filter(has).length;
  byId("save").disabled = decisions.decided().length === 0;
  byId("undo").disabled = decisions.before.length === 0;
  document.body.classList.toggle("unkept", !decisions.kept);
  if (!decisions.kept) say("This browser keeps nothing of this page: save before you close it.", true);
}

// A card that no longer fits stays until the filter is chosen again: what one has just decided must not vanish.
function apply() {
  const has = FILTERS.find(([name]) => name === filter)[2];
  const chosen = byId("class").value;
  for (const card of cards) card.node.hidden = !(has(card) && (chosen === "" || page.classes[chosen] === card.item.label));
  for (const [name] of FILTERS) byId(`filter-${name}`).setAttribute("aria-pressed", String(name === filter));
  byId("empty").hidden = visible().length > 0;
  if (current?.node.hidden) visible()[0] && setCurrent(visible()[0]);
}

function buildFilters() {
  for (const [name, title] of FILTERS) {
    const chip = el("button", { type: "button", id: `filter-${name}`, className: "chip" }, `${title} `, el("b"));
    chip.addEventListener("click", () => { filter = name; apply(); });
    byId("filters").append(chip);
  }
  const select = el("select", { id: "class", className: "chip", aria: { label: "Class" } }, new Option("Every class", ""));
  for (const [place, name] of page.classes.entries()) {
    select.append(new Option(`${name} (${page.items.filter((item) => item.label === name).length})`, place));
  }
  select.hidden = hasFields;
  select.addEventListener("change", apply);
  byId("filters").append(select);
}

function undo() {
  const sha256 = decisions.undo();
  if (sha256 === undefined) return;
  const card = cardOf.get(sha256);
  card.node.hidden = false;
  say(`Image ${card.place + 1}: taken back.`);
  go(card);
}

function save() {
  const file = decisions.toFile();
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(file, null, 1)}\n`], { type: "application/json" }));
  const name = `${page.name}-corrections.json`;
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  decisions.saved = true;
  const changed = file.items.filter((item) => item.label !== item.was).length;
  say(`Saved as ${name}: ${file.items.length} images, ${changed} of them corrected.`);
}

async function load(file) {
  try {
    const { taken, here, refused } = decisions.fromFile(await file.text());
    const elsewhere = taken > here ? `, ${taken - here} of them in another sample` : "";
    say(`${file.name}: ${taken} images${elsewhere}${refused ? `; ${refused} have no label of this run and were left out` : ""}.`, refused > 0);
    apply();
  } catch (error) {
    say(`${file.name} cannot be read: ${error.message}.`, true);
  }
}

function zoom(card) {
  const image = byId("zoom").querySelector("img");
  image.src = card.item.picture;
  image.alt = `Image ${card.place + 1}`;
  image.classList.toggle("pixels", card.node.querySelector("img").classList.contains("pixels"));
  byId("zoom").showModal();
}

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey || byId("zoom").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape" && current) current.node.focus({ preventScroll: true });
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const confirms = key === "Enter" || key === " ";
  if (confirms && event.target.closest("button, a, summary")) return; // it does what that element says
  const place = (DIGITS + LETTERS).indexOf(key);
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (key in moves) step(moves[key]);
  else if (key === "u") undo();
  else if (!current || current.node.hidden) return;
  else if (key === "n") current.note.focus();
  else if (key === "z") zoom(current);
  else if (confirms || key === "0" || (key.length === 1 && place >= 0 && place < page.classes.length)) {
    decide(current, confirms ? current.item.label : key === "0" ? null : page.classes[place]);
    goOn();
  } else return;
  event.preventDefault();
}

buildFilters();
byId("items").append(...cards.map((card) => card.node));
byId("keys").parentElement.hidden = hasFields;
byId("keys").append(
  el("kbd", { textContent: "1" }), " to ", el("kbd", { textContent: String(Math.min(page.classes.length, 9)) }),
  page.classes.length > 9 ? ", or the letter on the button" : "",
);
byId("undo").addEventListener("click", undo);
byId("save").addEventListener("click", save);
byId("load").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async ({ target }) => {
  if (target.files[0]) await load(target.files[0]);
  target.value = ""; // so that the same file can be read again
});
byId("zoom").addEventListener("click", () => byId("zoom").close());
document.addEventListener("keydown", onKey);
addEventListener("storage", (event) => {
  if (event.key === KEY && decisions.read()) show(); // another tab with this page
});
addEventListener("beforeunload", (event) => {
  if (!decisions.kept && !decisions.saved) event.preventDefault();
});
new ResizeObserver(([bar]) => document.documentElement.style.setProperty("--bar", `${bar.target.offsetHeight}px`)).observe(byId("bar"));
show();
apply();
setCurrent(cards.find((card) => !card.decided) ?? cards[0]);
