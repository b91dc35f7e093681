// One card for each image. All that comes from outside is put in as text.

const DIGITS = "123456789";
const LETTERS = "qwertasdfgyhjklxcvb"; // of the classes beyond the ninth; n, u and z do something else
const keyOf = (place) => (DIGITS + LETTERS)[place];
const SMALL_PX = 96; // pictures up to this size are shown with their pixels

function el(tag, properties = {}, ...children) {
  const { data, aria, ...plain } = properties;
  const node = Object.assign(document.createElement(tag), plain);
  Object.assign(node.dataset, data);
  for (const [name, value] of Object.entries(aria ?? {})) node.setAttribute(name === "role" ? name : `aria-${name}`, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Names and texts may be written from right to left; they must not turn what stands beside them.
const word = (text, properties = {}) => el("bdi", { textContent: text, ...properties });
const per100 = (share) => `${Math.round(100 * share)} %`;

class Card {
  constructor(item, place, total, act) {
    this.item = item;
    this.place = place;
    this.act = act;
    this.buttons = new Map();
    this.state = el("p", { className: "state" });
    this.note = el("input", { type: "text", placeholder: "Note", maxLength: 2000, dir: "auto", aria: { label: `Note on image ${place + 1}` } });
    this.note.addEventListener("input", () => act.note(this, this.note.value));
    const info = el("div", { className: "info" }, this.head(total), this.sure(), this.reason(), this.choices(), this.note, this.source());
    this.node = el("article", { className: "item", id: `item-${place + 1}`, tabIndex: -1, aria: { labelledby: `name-${place + 1}` } }, this.picture(), info);
    this.node.addEventListener("focusin", () => act.current(this));
    this.node.addEventListener("pointerdown", () => act.current(this));
  }

  head(total) {
    const number = el("span", { className: "number", textContent: `${this.place + 1}`, title: `Image ${this.place + 1} of ${total}` });
    this.name = word(shown(this.item.label));
    const by = this.item.by ? ` by ${this.item.by}` : "";
    return el("div", { className: "head" }, el("h2", { id: `name-${this.place + 1}`, className: hasFields ? "long" : "", title: `Labelled${by}` }, number, this.name), this.state);
  }

  picture() {
    const image = el("img", { loading: "lazy", decoding: "async", alt: `Image ${this.place + 1}`, src: this.item.picture });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= SMALL_PX));
    const button = el("button", { type: "button", className: "picture", title: "Large picture (z)", aria: { label: `Large picture of image ${this.place + 1}` } }, image);
    button.addEventListener("click", () => this.act.zoom(this));
    return button;
  }

  sure() {
    const { confidence, votes, runner_up } = this.item;
    const parts = [];
    if (confidence !== null) {
      const bar = el("span", { className: "sureness", aria: { hidden: "true" } }, el("i"));
      bar.firstChild.style.width = `${100 * confidence}%`;
      parts.push(el("span", {}, bar, `${per100(confidence)} sure`));
    }
    if (votes !== null && page.votes > 1) parts.push(el("span", { textContent: `${votes} of ${page.votes} votes` }));
    if (runner_up) parts.push(el("span", {}, "next ", word(runner_up)));
    return parts.length ? el("p", { className: "known" }, ...parts) : null;
  }

  reason() {
    return this.item.reason ? el("p", { className: "reason", dir: "auto", textContent: this.item.reason }) : null;
  }

  choices() {
    if (hasFields) return this.fieldChoices();
    const names = page.classes.map((name, place) => this.choice(name, word(name), keyOf(place)));
    const none = this.choice(null, "none of these", "0");
    none.classList.add("none");
    return el("div", { className: "choices", aria: { role: "group", label: `Label of image ${this.place + 1}` } }, ...names, none);
  }

  fieldChoices() {
    this.form = new FieldForm(this);
    const right = this.choice(this.item.label, "right", null);
    const none = this.choice(null, "none of these", "0");
    none.classList.add("none");
    const group = el("div", { className: "choices", aria: { role: "group", label: `Label of image ${this.place + 1}` } }, right, this.form.write, none);
    return el("div", {}, this.form.node, group);
  }

  choice(label, text, key) {
    const button = el("button", { type: "button", data: { choice: label ?? "" }, aria: { pressed: "false" } }, key ? el("kbd", { textContent: key, aria: { hidden: "true" } }) : null, text);
    if (label === this.item.label) button.classList.add("proposed");
    button.addEventListener("click", (event) => this.act.decide(this, label, event.detail > 0));
    this.buttons.set(label, button);
    return button;
  }

  source() {
    const { source_id, author, licence, split, url } = this.item;
    const parts = [word(source_id), author && word(author), licence && word(licence), split].filter(Boolean);
    // A source is asked for its page only when a person follows the link; other schemes than these two could run something.
    if (/^https?:\/\//i.test(url ?? "")) {
      parts.push(el("a", { href: url, target: "_blank", rel: "noopener noreferrer", textContent: "source" }));
    }
    return el("p", { className: "origin" }, ...parts.flatMap((part, place) => (place ? [" · ", part] : [part])));
  }

  get decided() {
    return this.act.label(this) !== undefined;
  }

  get corrected() {
    return this.decided && this.act.label(this) !== this.item.label;
  }

  show(note) {
    const label = this.act.label(this);
    this.node.classList.toggle("right", this.decided && !this.corrected);
    this.node.classList.toggle("corrected", this.corrected);
    for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", String(name === label));
    this.state.replaceChildren(...(!this.decided ? ["to do"] : this.corrected ? ["→ ", label === null ? "none of these" : word(shown(label))] : ["✓ right"]));
    this.form?.show(label);
    if (this.note.value !== note) this.note.value = note;
  }
}
