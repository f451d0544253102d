// The episode browser. Everything a model wrote enters the page through textContent, never as markup.
(() => {
  const PAGE = 8; // episodes at a time
  const SOURCES = {
    trained: "Trained model, held-out problems",
    base: "Base model, held-out problems",
    training: "Training episodes",
  };
  const SIDES = { trained: "Trained", base: "Base", training: "While training" };
  const VERDICTS = {
    correct: "right", wrong: "wrong", no_answer: "no answer", truncated: "cut by the token cap",
    timeout: "timed out", error: "verifier failed",
  };
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const count = (n) => n.toLocaleString("en");
  let page = 0;

  function element(name, className, ...children) {
    const node = document.createElement(name);
    if (className) node.className = className;
    node.append(...children); // strings become text nodes
    return node;
  }

  // --- one episode ---

  function attemptView(attempts, k) {
    const attempt = attempts[k];
    const answers = attempts.filter((a) => a.turn !== "verdict");
    const n = answers.indexOf(attempt); // -1: a turn in which the model judges its answer
    const text = element("pre", "");
    text.dir = "auto";
    if (answers.length === 1 || n < 0 || attempt.kept) {
      text.append(attempt.text);
    } else {
      // The first shows what the second drops; the others show what they add.
      const [before, after, hidden] = n === 0 ? [0, 1, "new"] : [n - 1, n, "gone"];
      const parts = wordDiff(answers[before].text, answers[after].text).filter(([kind]) => kind !== hidden);
      text.append(...parts.map(([kind, part]) => kind === "same" ? part : element(kind === "gone" ? "del" : "ins", "", part)));
    }
    if (!attempt.text) text.append(element("em", "", "(empty)"));
    const heading = element("h5", "", n < 0 ? "The model's verdict " : `Attempt ${n + 1} `);
    if (attempt.verdict) {
      heading.append(element("span", `verdict ${attempt.verdict}`, VERDICTS[attempt.verdict] || attempt.verdict));
    }
    const view = element("div", "attempt", heading);
    if (attempt.thinking) {
      const size = attempt.thinkingTokens === null ? "" : ` (${count(attempt.thinkingTokens)} tokens)`;
      const thinking = element("pre", "", attempt.thinking);
      thinking.dir = "auto";
      view.append(element("details", "thinking", element("summary", "", `Thinking${size}`), thinking));
    }
    view.append(text);
    const answer = element("p", "meta", "Extracted answer: ");
    answer.append(attempt.extracted === null ? "none" : element("bdi", "", attempt.extracted));
    if (attempt.detail) answer.append(" (", element("bdi", "", attempt.detail), ")");
    view.append(answer);
    const notes = [];
    if (attempt.tokens !== null) notes.push(`${count(attempt.tokens)} tokens`);
    if (attempt.stop === "length") notes.push("stopped by the token cap");
    if (attempt.given) notes.push("given, not sampled");
    if (attempt.kept) notes.push("not played: the attempt before stands");
    else if (attempt.repeats) notes.push("repeats the previous attempt");
    if (attempt.leftOut) notes.push(`${count(attempt.leftOut)} characters in the middle not shown`);
    if (notes.length) view.append(element("p", "meta", notes.join("; ")));
    return view;
  }

  function episodeView(entry) {
    const title = element("h3", "", element("bdi", "", entry.id));
    const question = element("p", "question", entry.question);
    question.dir = "auto";
    const meta = [data.runs.length > 1 ? data.runs[entry.run].name : "", entry.level || "",
      entry.step ? `step ${count(entry.step)}` : "", entry.sample ? `sample ${entry.sample + 1}` : ""];
    const gold = element("p", "", "Expected: ", element("bdi", "", entry.gold));
    const sides = element("div", "sides");
    for (const [who, side] of Object.entries(entry.sides)) {
      const what = side.tags.map((tag) => data.tags[tag].split(":")[0].toLowerCase()).join(", ");
      const attempts = element("div", "attempts", ...side.attempts.map((_, k) => attemptView(side.attempts, k)));
      sides.append(element("section", "side", element("h4", "", SIDES[who] + (what ? `: ${what}` : "")), attempts));
    }
    return element("article", "episode", title, element("p", "meta", meta.filter(Boolean).join(", ")), question, gold, sides);
  }

  // --- filters ---

  const texts = new Map();
  function searchable(entry) {
    if (!texts.has(entry)) {
      const parts = [entry.id, entry.level, entry.question, entry.gold];
      for (const side of Object.values(entry.sides)) for (const a of side.attempts) parts.push(a.text, a.extracted);
      texts.set(entry, parts.filter(Boolean).join("\n").toLowerCase());
    }
    return texts.get(entry);
  }

  const ofRun = () => data.entries.filter((e) => e.run === Number(at("run").value));
  const ofSource = () => ofRun().filter((e) => at("source").value in e.sides);

  function fill(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      return option;
    }));
    if (options.some(([value]) => value === before)) select.value = before;
  }

  function fillSources() {
    const totals = data.runs[Number(at("run").value)].totals;
    fill(at("source"), Object.keys(SOURCES).filter((s) => s in totals).map((s) => [s, SOURCES[s]]));
    fillTags();
  }

  function fillTags() {
    const here = ofSource(), source = at("source").value;
    const totals = data.runs[Number(at("run").value)].totals[source] || {};
    const line = (text, n, total) => `${text} (${count(n)} of ${count(total || 0)} on this page)`;
    const tags = Object.entries(data.tags).filter(([tag]) => totals[tag]);
    fill(at("tag"), [["", line("All", here.length, totals.all)], ...tags.map(([tag, words]) => {
      const n = here.filter((e) => e.sides[source].tags.includes(tag)).length;
      return [tag, line(words.split(":")[0], n, totals[tag])];
    })]);
  }

  function show() {
    const source = at("source").value, tag = at("tag").value, wanted = at("search").value.trim().toLowerCase();
    const totals = data.runs[Number(at("run").value)].totals[source] || {};
    const here = ofSource();
    const found = here.filter((e) => (!tag || e.sides[source].tags.includes(tag)) && (!wanted || searchable(e).includes(wanted)));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    at("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(episodeView));
    const sampled = here.length < (totals.all || 0) ? ", a mix of all kinds" : "";
    at("status").textContent = totals.all
      ? `${count(found.length)} found. This page holds ${count(here.length)} of ${count(totals.all)} ${totals.partial ? "latest " : ""}episodes${sampled}.`
      : "No episodes have been recorded yet.";
    at("paging").hidden = pages < 2;
    at("where").textContent = `page ${page + 1} of ${pages}`;
    at("previous").disabled = page === 0;
    at("next").disabled = page === pages - 1;
  }

  function turn(by) {
    page += by;
    show();
    at("episodes").focus({ preventScroll: true });
    at("filters").scrollIntoView();
  }

  const restart = () => { page = 0; show(); };
  fill(at("run"), data.runs.map((run, i) => [String(i), run.name]));
  at("run-field").hidden = data.runs.length < 2;
  fillSources();
  at("filters").hidden = !Object.keys(data.runs.map((r) => r.totals).reduce((a, b) => ({ ...a, ...b }), {})).length;
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("run").addEventListener("change", () => { fillSources(); restart(); });
  at("source").addEventListener("change", () => { fillTags(); restart(); });
  at("tag").addEventListener("change", restart);
  at("search").addEventListener("input", restart);
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  show();
})();
