"use strict";

/* ---- Which tokens a rule takes: as stages/method/rules.py, to the token ---- */

function selectedCount(length, ratio) {
  return Math.max(1, Math.ceil(ratio * length - 1e-9));
}

/** Places by falling key; ties go to the earlier token. */
function ranking(keys) {
  return Uint32Array.from(keys.keys()).sort((a, b) => keys[b] - keys[a] || a - b);
}

/** What SePO wants of a response: high scores if it was chosen, low ones if it was rejected. */
function wantedKeys(scores, rejected) {
  return rejected ? scores.map(score => -score) : scores;
}

const KEYS = {
  oracle: (scores, rejected) => wantedKeys(scores, rejected),
  inverted: (scores, rejected) => wantedKeys(scores, !rejected),
  earliest: scores => scores.map((_, place) => -place),
  latest: scores => scores.map((_, place) => place),
  symmetric: (scores, rejected, options) => scores.map(score => Math.abs(Math.fround(score - options.median))),
};

function fewest(keys, noise, share) {
  const beyond = Float64Array.from(keys, key => Math.max(key - noise, 0));
  const order = ranking(beyond), sums = new Float64Array(order.length);
  let sum = 0;
  order.forEach((place, rank) => { sums[rank] = sum += beyond[place]; });
  const enough = share * sum * (1 - 1e-12);
  return sum > 0 ? [...order.subarray(0, sums.findIndex(each => each >= enough) + 1)].filter(p => beyond[p] > 0) : [];
}

const rankings = new WeakMap();

/** The ranking of a response by a rule, which no slider changes. */
function rankedBy(rule, scores, rejected, options) {
  if (!rankings.has(scores)) rankings.set(scores, {});
  return rankings.get(scores)[rule] ??= ranking(KEYS[rule](scores, rejected, options));
}

/** A mask over the tokens of a response, from its scores (Float32Array). */
function selectTokens(rule, scores, rejected, options) {
  const mask = new Uint8Array(scores.length), ratio = rejected ? options.rejected_ratio : options.chosen_ratio;
  const take = places => places.forEach(place => { mask[place] = 1; });
  if (rule === "all") {
    mask.fill(1);
  } else if (rule === "threshold") {
    const least = Math.fround(options.threshold);
    wantedKeys(scores, rejected).forEach((key, place) => { mask[place] = key >= least; });
  } else if (rule === "auto") {
    take(fewest(wantedKeys(scores, rejected), options.noise || 0, options.auto_share));
  } else if (options.authors_rule && AUTHORS.includes(rule) && scores.length > 1) {
    const others = rankedBy(rule, scores, rejected, options).filter(place => place > 0);
    take(others.subarray(0, Math.max(1, Math.trunc(ratio * (scores.length - 1)))));
  } else {
    take(rankedBy(rule, scores, rejected, options).subarray(0, selectedCount(scores.length, ratio)));
  }
  if (!mask.includes(1)) mask[rankedBy("oracle", scores, rejected, options)[0]] = 1;
  return mask;
}

const BY_RATIO = ["oracle", "inverted", "symmetric", "earliest", "latest"];
const AUTHORS = ["oracle", "inverted"];
const USES = { chosen_ratio: BY_RATIO, rejected_ratio: BY_RATIO, authors_rule: AUTHORS, threshold: ["threshold"], auto_share: ["auto"] };

/* ---- The page ---- */

const $ = id => document.getElementById(id);
/** The class of a token at the median that is not selected: the page leaves it out. */
const PLAIN = "k";
const root = document.documentElement;

function bytesOf(base64, Kind) {
  return base64 && new Kind(Uint8Array.from(atob(base64), letter => letter.charCodeAt(0)).buffer);
}

/** The responses in the order of their numbers, each with its element and its part of the arrays. */
function readResponses(numbers) {
  const scores = bytesOf(numbers.scores, Float32Array), logps = bytesOf(numbers.logps, Int16Array);
  const types = bytesOf(numbers.types, Uint32Array), typeOf = bytesOf(numbers.type_of, numbers.wide ? Uint32Array : Uint16Array);
  let start = 0;
  return [...document.querySelectorAll(".tokens")].map((element, number) => {
    const end = start + element.childElementCount;
    const part = array => array && array.subarray(start, end);
    const response = {
      element, rejected: number % 2 === 1, scores: part(scores), logps: part(logps),
      ids: Uint32Array.from(part(typeOf), type => types[type]),
      mask: Uint8Array.from(element.children, token => /[A-Z]/.test(token.className)),
    };
    start = end;
    return response;
  });
}

function shares(selected, all) {
  return `${selected.toLocaleString("en")} of ${all.toLocaleString("en")} (${(100 * selected / all).toFixed(1)}%)`;
}

class Viewer {
  constructor(numbers) {
    this.numbers = numbers;
    this.responses = readResponses(numbers);
    this.bySide = this.responses.map(each => each.element);
    this.pairs = [...document.querySelectorAll(".pair")];
    this.form = $("selection");
    this.form.addEventListener("input", () => this.select());
    this.form.addEventListener("submit", event => event.preventDefault());
    $("sort").addEventListener("input", () => this.sort());
    $("find").addEventListener("input", () => this.filter());
    const list = $("pairs");
    for (const kind of ["mouseover", "click"]) list.addEventListener(kind, event => this.point(event.target));
    list.addEventListener("focusin", event => event.target.matches(".tokens") && this.step(event.target, 0));
    list.addEventListener("keydown", event => this.walk(event));
    document.addEventListener("keydown", event => this.jump(event));
    this.select();
  }

  /** The rule and its options as the form has them. */
  options() {
    const value = name => Number(this.form.elements[name].value);
    return {
      chosen_ratio: value("chosen_ratio"), rejected_ratio: value("rejected_ratio"), threshold: value("threshold"),
      auto_share: value("auto_share"), authors_rule: this.form.elements.authors_rule.checked,
      median: this.numbers.median, noise: this.numbers.noise,
    };
  }

  select() {
    const rule = this.form.elements.rule.value, options = this.options();
    for (const [name, rules] of Object.entries(USES)) {
      const field = this.form.elements[name];
      field.closest("label").hidden = !rules.includes(rule);
      const shown = field.closest("label").querySelector("output");
      if (shown) shown.value = +Number(field.value).toFixed(4);
    }
    const counts = [[0, 0], [0, 0]];
    for (const response of this.responses) {
      const mask = selectTokens(rule, response.scores, response.rejected, options);
      const tokens = response.element.children;
      let selected = 0;
      for (let place = 0; place < mask.length; place++) {
        selected += mask[place];
        if (mask[place] !== response.mask[place]) {
          const letter = tokens[place].className || PLAIN;
          tokens[place].className = mask[place] ? letter.toUpperCase() : letter.toLowerCase();
        }
      }
      response.mask = mask;
      response.element.previousElementSibling.querySelector("b").textContent = selected.toLocaleString("en");
      counts[+response.rejected][0] += selected;
      counts[+response.rejected][1] += mask.length;
    }
    $("counts").textContent = `Selected: ${shares(...counts[0])} chosen tokens, ${shares(...counts[1])} rejected ones`
      + this.inAll(rule, options);
  }

  /** Of a page that shows a sample, what a rule that looks at lengths alone takes of all pairs. */
  inAll(rule, options) {
    const all = this.numbers.all_lengths;
    if (!all || !(BY_RATIO.includes(rule) || rule === "all")) return "";
    const count = (lengths, ratio) => {
      let selected = 0, tokens = 0;
      for (const [length, responses] of lengths) {
        const authors = options.authors_rule && AUTHORS.includes(rule) && length > 1;
        const each = rule === "all" ? length : authors ? Math.max(1, Math.trunc(ratio * (length - 1))) : selectedCount(length, ratio);
        selected += responses * each;
        tokens += responses * length;
      }
      return shares(selected, tokens);
    };
    return ` of the pairs shown; in all pairs ${count(all.chosen, options.chosen_ratio)} and ${count(all.rejected, options.rejected_ratio)}`;
  }

  sort() {
    const by = {
      number: pair => +pair.dataset.row, "margin-up": pair => +pair.dataset.margin,
      "margin-down": pair => -pair.dataset.margin, length: pair => -pair.dataset.tokens,
    }[$("sort").value];
    $("pairs").append(...this.pairs.sort((a, b) => by(a) - by(b) || a.dataset.row - b.dataset.row));
  }

  filter() {
    const plain = text => text.toLowerCase().replace(/[\s⏎·]+/g, " ");
    const wanted = plain($("find").value).trim();
    let shown = 0;
    for (const pair of this.pairs) {
      pair.text ??= plain([...pair.querySelectorAll("h3 a, .prompt p, .tokens")].map(part => part.textContent).join(" "));
      pair.hidden = !pair.text.includes(wanted);
      shown += !pair.hidden;
    }
    $("found").textContent = wanted ? `${shown.toLocaleString("en")} of ${this.pairs.length.toLocaleString("en")} pairs` : "";
  }

  /** Show the token under the pointer. */
  point(target) {
    if (target.matches(".tokens > i")) this.show(target);
  }

  /** Arrow keys walk through the tokens of the response that has the focus. */
  walk(event) {
    if (event.key === "Escape") $("details").hidden = true;
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !event.target.matches(".tokens")) return;
    event.preventDefault();
    this.step(event.target, by);
  }

  step(element, by) {
    const tokens = element.children, last = tokens.length - 1;
    const at = this.token && this.token.parentElement === element ? [...tokens].indexOf(this.token) : 0;
    this.show(tokens[Math.min(last, Math.max(0, at + by))]);
  }

  show(token) {
    if (this.token) this.token.removeAttribute("aria-current");
    this.token = token;
    token.setAttribute("aria-current", "true");
    const response = this.responses[this.bySide.indexOf(token.parentElement)];
    const at = [...token.parentElement.children].indexOf(token), count = response.mask.length;
    const keys = wantedKeys(response.scores, response.rejected);
    const order = rankedBy("oracle", response.scores, response.rejected);
    const rank = order.indexOf(at), gain = Float64Array.from(order, place => Math.max(0, keys[place]));
    const sum = gain.reduce((a, b) => a + b, 0), share = gain.subarray(0, rank + 1).reduce((a, b) => a + b, 0) / sum;
    const logp = response.logps ? response.logps[at] : -32768;
    const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(3);
    const values = {
      token: token.textContent, id: response.ids[at], position: `${at + 1} of ${count}`, score: `${signed(response.scores[at])} nats`,
      logp: logp === -32768 ? "not recorded" : `${logp < -32760 ? "≤ " : ""}${(logp / 256).toFixed(2).replace("-", "−")} nats`,
      rank: `${rank + 1} of ${count}`, share: sum > 0 ? `${(100 * share).toFixed(0)}%` : "none to share",
      selected: response.mask[at] ? "yes" : "no",
    };
    for (const [name, value] of Object.entries(values)) $("detail-" + name).textContent = value;
    $("details").hidden = false;
  }

  /** j and k go to the next and the previous pair. */
  jump(event) {
    const by = { j: 1, k: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=range]), select")) return;
    if ($("tokens").hidden) return;
    const shown = this.pairs.filter(pair => !pair.hidden);
    const at = shown.findIndex(pair => pair.id === location.hash.slice(1));
    const next = shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))];
    if (next) location.hash = next.id;
  }
}

/** One section at a time; the address says which, or which pair. */
function showSection() {
  const target = $(location.hash.slice(1));
  const sections = [...document.querySelectorAll("main > section")];
  // The link that skips the head of the page leads to the section that is shown.
  const wanted = (target && target.closest("main > section")) || sections.find(each => target && !each.hidden) || sections[0];
  for (const section of sections) section.hidden = section !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (target && target.matches(".pair")) {
    target.hidden = false;
    target.scrollIntoView();
    target.querySelector("h3 a").focus({ preventScroll: true });
  } else if (target && target !== wanted) {
    target.scrollIntoView();
  } else {
    scrollTo(0, 0);
  }
}

function switchTheme() {
  const dark = getComputedStyle(root).colorScheme === "dark"
    || (getComputedStyle(root).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
}

if ($("sections")) {
  root.classList.add("live");
  $("theme").addEventListener("click", switchTheme);
  if ($("numbers")) window.viewer = new Viewer(JSON.parse($("numbers").textContent));
  window.addEventListener("hashchange", showSection);
  showSection();
}
