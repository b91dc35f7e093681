// The fields of a label, where it is JSON: how they are shown, and a form to correct them. Lists have one text a line.

const hasFields = page.fields.length > 0;

// A label as a person reads it.
function shown(label) {
  if (label === null) return "none of these";
  if (!hasFields) return label;
  return page.fields.map(({ name }) => [name, JSON.parse(label)[name]])
    .map(([name, value]) => `${name}: ${Array.isArray(value) ? value.join(", ") || "none" : value === "" ? "empty" : value}`).join(" · ");
}

// What keeps values from being a label; null if nothing does. The labeller checks again, by the same rules.
function wrongIn(values) {
  for (const field of page.fields) {
    const wrong = wrongWith(values?.[field.name], field);
    if (wrong) return `${field.name}: ${wrong}`;
  }
  return null;
}

function wrongWith(value, { type, values, max_length, max_items }) {
  const items = type === "list" ? value : [value];
  if (!Array.isArray(items)) return "is no list";
  if (max_items && items.length > max_items) return `${items.length} texts, and ${max_items} are allowed`;
  for (const item of items) {
    if (type === "integer" && !Number.isSafeInteger(item)) return "is no whole number";
    if (type === "number" && !Number.isFinite(item)) return "is no number";
    if (type === "boolean" && typeof item !== "boolean") return "is neither yes nor no";
    if ((type === "string" || type === "list") && typeof item !== "string") return "is no text";
    if (values.length && !values.includes(item)) return `${item} is none of ${values.join(", ")}`;
    if (max_length && [...item].length > max_length) return `${[...item].length} characters, and ${max_length} are allowed`;
  }
  return null;
}

function isLabel(label) {
  if (label === null) return true;
  if (!hasFields) return page.classes.includes(label);
  try {
    return wrongIn(JSON.parse(label)) === null;
  } catch {
    return false;
  }
}

// Equal values as one text, whatever the way in which they were written.
const inOrder = (values) => JSON.stringify(Object.fromEntries(page.fields.map(({ name }) => [name, values[name]])));

class FieldForm {
  constructor(card) {
    this.card = card;
    this.inputs = new Map(page.fields.map((field) => [field.name, this.input(field)]));
    this.message = el("p", { className: "wrong", aria: { live: "polite" } });
    const rows = page.fields.map(({ name }) => el("label", { className: "field" }, el("span", { textContent: name }), this.inputs.get(name)));
    this.write = el("button", { type: "button", textContent: "as written here", data: { choice: "written" }, aria: { pressed: "false" } });
    this.write.addEventListener("click", (event) => this.decide(event.detail > 0));
    this.node = el("div", { className: "fields" }, ...rows, this.message);
    this.fill(card.item.label);
  }

  input(field) {
    const aria = { label: `${field.name} of image ${this.card.place + 1}` };
    const choices = field.type === "boolean" ? ["false", "true"] : field.type === "list" ? [] : field.values.map(String);
    if (choices.length) return el("select", { aria }, ...choices.map((text) => new Option(text, text)));
    if (field.type === "list") return el("textarea", { rows: 3, dir: "auto", aria });
    return el("input", { type: "text", dir: "auto", aria });
  }

  fill(label) {
    const values = JSON.parse(label);
    for (const { name, type } of page.fields) this.inputs.get(name).value = type === "list" ? values[name].join("\n") : String(values[name]);
    this.message.textContent = "";
  }

  values() {
    return Object.fromEntries(page.fields.map(({ name, type }) => {
      const text = this.inputs.get(name).value;
      if (type === "list") return [name, text.split("\n").map((line) => line.trim()).filter(Boolean)];
      if (type === "boolean") return [name, text === "true"];
      if (type === "string") return [name, text.trim()];
      return [name, text.trim() === "" ? NaN : Number(text)];
    }));
  }

  decide(byPointer) {
    const values = this.values();
    const wrong = wrongIn(values);
    this.message.textContent = wrong ?? "";
    if (wrong) return;
    const { label } = this.card.item;
    this.card.act.decide(this.card, inOrder(values) === inOrder(JSON.parse(label)) ? label : inOrder(values), byPointer);
  }

  show(label) {
    if (typeof label === "string") this.fill(label);
    this.write.setAttribute("aria-pressed", String(typeof label === "string" && label !== this.card.item.label));
  }
}
