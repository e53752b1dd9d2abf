"use strict";
const setup = JSON.parse(document.getElementById("setup").textContent);
const at = (id) => document.getElementById(id);
const state = { sample: 0, file: null, answer: null, running: false, again: false, timer: 0 };

function make(tag, attributes = {}, ...children) {
  const { class: kind, ...properties } = attributes;
  const element = Object.assign(document.createElement(tag), properties);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}

const percent = (p) => `${p > 0 && p < 0.005 ? "< 1" : Math.round(100 * p)}\u00a0%`;
const labels = () => at("labels").value.split("\n").map((line) => line.trim()).filter(Boolean);

function showSamples() {
  const tiles = setup.samples.map((sample, index) => tile(sample.picture, sample.label, state.file === null && index === state.sample,
    () => pick(index)));
  if (state.file?.picture) tiles.push(tile(state.file.picture, state.file.name, true, () => {}));
  at("samples").replaceChildren(...tiles);
}

function tile(picture, name, pressed, choose) {
  const button = make("button", { type: "button", title: name, onclick: choose }, make("img", { src: picture, alt: name }));
  button.setAttribute("aria-pressed", pressed);
  return button;
}

function pick(index) {
  Object.assign(state, { sample: index, file: null });
  showSamples();
  showLabels(setup.samples[index].label);
  run();
}

function showLabels(chosen) {
  const names = labels();
  const first = make("option", { value: "", textContent: "not said" });
  at("label").replaceChildren(first, ...names.map((name) => make("option", { value: name, textContent: name })));
  at("label").value = names.includes(chosen) ? chosen : "";
  at("count").textContent = names.length;
  sayLabel();
}

function sayLabel() {
  at("shows").textContent = at("label").value ? `“${at("label").value}”` : "each model’s own answer";
}

async function upload(file) {
  if (!file) return;
  if (file.size > setup.limit) return fail(`${file.name} is larger than ${setup.limit / 2 ** 20} MB; make it smaller`);
  const reader = new FileReader();
  reader.onerror = () => fail(`the browser cannot read ${file.name}`);
  reader.onload = () => {
    state.file = { name: file.name, data: reader.result.slice(reader.result.indexOf(",") + 1), picture: null };
    showSamples();
    showLabels("");
    at("more").open = true;
    run();
  };
  reader.readAsDataURL(file);
}

/* One request at a time: what changes meanwhile is asked for when the answer is here. */
async function run() {
  if (state.running) { state.again = true; return; }
  state.running = true;
  const started = Date.now();
  const clock = setInterval(() => busy(Math.round((Date.now() - started) / 1000)), 1000);
  busy(0);
  try {
    do {
      state.again = false;
      const asked = {
        ...(state.file ? { file: state.file.data, name: state.file.name } : { sample: state.sample }),
        labels: labels(), label: at("label").value, eps: `${at("eps").value}/255`, attack: at("attack").value,
      };
      const file = state.file;
      const [good, answer] = await ask(asked);
      if (state.again) continue;
      if (!good) { fail(answer.error); continue; }
      at("error").hidden = true;
      state.answer = answer;
      if (file && file === state.file) { file.picture = answer.made[0].clean; showSamples(); }
      show();
      at("status").textContent = `${answer.title} (${answer.seconds.toFixed(1)} s)`;
    } while (state.again);
  } finally {
    clearInterval(clock);
    state.running = false;
    at("status").classList.remove("busy");
    at("cards").classList.remove("stale");
  }
}

async function ask(asked) {
  try {
    const response = await fetch("attack", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) });
    return [response.ok, await response.json()];
  } catch {
    return [false, { error: "no answer: is `advflyp demo` still running in the terminal?" }];
  }
}

function busy(seconds) {
  at("status").classList.add("busy");
  at("status").textContent = seconds < 2 ? "attacking …" : `attacking … ${seconds} s`;
  at("cards").classList.add("stale");
}

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = false;
  at("status").textContent = "";
  at("cards").replaceChildren();
  at("about").hidden = at("view").hidden = true;
}

function show() {
  const answer = state.answer;
  const own = answer.models.length < 2 || document.querySelector("[name=view]:checked").value === "own";
  at("view").hidden = answer.models.length < 2;
  at("about").hidden = false;
  at("about").textContent = setup.about;
  at("cards").replaceChildren(...answer.models.map((_, index) => card(answer, index, own ? index : 0)));
}

function card(answer, model, made) {
  const picture = answer.made[made];
  const [clean, attacked] = [answer.clean[model], picture.guesses[model]];
  /* Where nobody said what the picture shows, no answer is wrong: each model is held to its own. */
  const label = answer.made[model].label;
  const outcome = made === model ? picture.outcome
    : clean[0].label !== label ? "wrong" : attacked[0].label === label ? "withstood" : "fooled";
  const [mood, words] = sentence(outcome, label, clean[0].label, attacked[0].label);
  const change = outcome === "wrong" && made === model ? "nothing to attack"
    : `at most ${picture.largest} of 255 grey levels, shown ×${Math.round(picture.amplification)}`;
  const save = make("a", { class: "save", href: picture.adversarial, download: "adversarial.png", textContent: "Save as PNG" });
  return make("article", { class: "card" },
    make("h2", { class: `c${model}` }, make("span", { textContent: answer.models[model] })),
    make("p", { class: `said ${mood}`, textContent: words }),
    row(picture, picture.clean, "the picture", "Clean", guesses(clean, label)),
    row(picture, picture.difference, "the change, amplified", "The change", make("p", { class: "note", textContent: change })),
    row(picture, picture.adversarial, "the attacked picture", made === model ? "Attacked" : `Attacked, made against ${answer.models[made]}`,
      guesses(attacked, label), save));
}

function sentence(outcome, label, clean, attacked) {
  if (outcome === "wrong") return ["none", `– wrong without an attack: “${clean}”`];
  if (outcome === "fooled") return ["bad", `✗ fooled: “${label}” becomes “${attacked}”`];
  if (outcome === "rounding") return ["good", `✓ still “${label}”, but only because pixels are rounded to 8 bits`];
  return ["good", `✓ withstands: still “${label}”`];
}

function row(made, picture, description, title, ...rest) {
  const image = make("img", { src: picture, alt: description, class: made.side <= 96 ? "small" : "" });
  return make("div", { class: "row" }, image, make("div", {}, make("h3", { textContent: title }), ...rest));
}

function guesses(list, label) {
  return make("ol", { class: "guess" }, ...list.slice(0, 4).map((guess) => {
    const line = make("li", { class: guess.label === label ? "right" : "", title: guess.label },
      make("span", { textContent: guess.label }), make("span", { textContent: percent(guess.probability) }));
    line.style.setProperty("--p", `${100 * guess.probability}%`);
    return line;
  }));
}

function soon() {
  clearTimeout(state.timer);
  state.timer = setTimeout(run, 500);
}

const showRadius = () => { at("radius").textContent = `${at("eps").value}/255`; };
at("attack").replaceChildren(...setup.attacks.map(([value, name]) => make("option", { value, textContent: name })));
at("attack").value = "pgd10";
at("first-view").textContent = `${setup.models[0]}’s attacked picture, shown to both`;
at("labels").value = setup.labels.join("\n");
at("eps").addEventListener("input", showRadius);
at("eps").addEventListener("change", run);
at("attack").addEventListener("change", run);
at("label").addEventListener("change", () => { sayLabel(); run(); });
at("labels").addEventListener("input", () => { showLabels(at("label").value); soon(); });
at("file").addEventListener("change", () => { upload(at("file").files[0]); at("file").value = ""; });
at("controls").addEventListener("submit", (event) => event.preventDefault());
for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", () => state.answer && show());
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") upload(event.dataTransfer.files[0]);
  });
}
showRadius();
showSamples();
showLabels(setup.samples[0].label);
run();
