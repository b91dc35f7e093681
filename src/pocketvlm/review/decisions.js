"use strict";
// What a person has decided. Kept in this browser as soon as it is decided, written to a file, read back from one.

const page = JSON.parse(document.getElementById("data").textContent);
const KEY = `pocketvlm-review/${page.dataset}`;
const itemOf = new Map(page.items.map((item) => [item.sha256, item]));

class Decisions {
  constructor(changed) {
    this.changed = changed;
    // sha256 -> {label, note, was, source_id}. A label is a class name or the fields as JSON, null for none of these, or undefined: only a note so far.
    this.all = new Map();
    this.before = []; // [sha256, label before] of every decision since the page was opened, for undo
    this.kept = this.read();
    this.saved = true;
  }

  read() {
    try {
      const text = localStorage.getItem(KEY);
      if (text !== null) this.all = new Map(JSON.parse(text));
      localStorage.setItem(KEY, JSON.stringify([...this.all])); // is there room, and may we?
      return true;
    } catch {
      return false; // storage is off, full, or holds something else: the page says so and asks to save
    }
  }

  write(sha256) {
    this.saved = false;
    try {
      localStorage.setItem(KEY, JSON.stringify([...this.all]));
      this.kept = true;
    } catch {
      this.kept = false;
    }
    this.changed(sha256);
  }

  label(sha256) {
    return this.all.get(sha256)?.label;
  }

  note(sha256) {
    return this.all.get(sha256)?.note ?? "";
  }

  set(sha256, change) {
    const { label: was, source_id } = itemOf.get(sha256);
    this.all.set(sha256, { label: undefined, note: "", was, source_id, ...this.all.get(sha256), ...change });
    this.write(sha256);
  }

  decide(sha256, label) {
    this.before.push([sha256, this.label(sha256)]);
    this.set(sha256, { label });
  }

  undo() {
    const last = this.before.pop();
    if (last) this.set(last[0], { label: last[1] });
    return last?.[0];
  }

  // Those of this page in its order, then those of other samples of the same dataset.
  decided() {
    const order = [...new Set([...itemOf.keys(), ...this.all.keys()])];
    return order.filter((sha256) => this.label(sha256) !== undefined);
  }

  toFile() {
    const items = this.decided().map((sha256) => {
      const { label, note, was, source_id } = this.all.get(sha256);
      return { sha256, source_id, label, was, note };
    });
    return { format: page.format, run: page.run, dataset: page.dataset, items };
  }

  // Takes what a saved file says; returns how many items were taken, and how many have no label of ours.
  fromFile(text) {
    const file = JSON.parse(text);
    if (file?.format !== page.format || !Array.isArray(file.items)) throw new Error(`it is no ${page.format} file`);
    const sound = file.items.filter(
      (item) => /^[0-9a-f]{64}$/.test(item?.sha256) && item.label !== undefined && isLabel(item.label),
    );
    for (const { sha256, label, was, source_id, note } of sound) {
      this.before.push([sha256, this.label(sha256)]);
      const here = itemOf.get(sha256);
      this.all.set(sha256, {
        label, note: String(note ?? ""), was: here ? here.label : (was ?? null), source_id: here ? here.source_id : String(source_id ?? ""),
      });
    }
    this.before = []; // a file is not taken back image by image
    this.write();
    return { taken: sound.length, here: sound.filter((item) => itemOf.has(item.sha256)).length, refused: file.items.length - sound.length };
  }
}
